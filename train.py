from train.command import accept_yaml_files
from train.main import main

if __name__ == "__main__":
    accept_yaml_files()
    main()
