from train.config.command import accept_yaml_files
from train.info import answer_and_exit
from train.main import main

if __name__ == "__main__":
    answer_and_exit()
    accept_yaml_files()
    main()
