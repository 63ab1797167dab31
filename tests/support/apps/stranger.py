"""A stranger's training script, on the standard library: its model is one number, its end is --end."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time


def note(event, **fields):
    with open(os.environ["LEDGER"], "a") as file:
        file.write(json.dumps({"event": event, "pid": os.getpid(), **fields}) + "\n")


def on_sigterm(number, frame):
    note("saved")
    print("interrupted: saving", flush=True)
    sys.exit(9)


parser = argparse.ArgumentParser()
parser.add_argument("--target", type=float, required=True)
parser.add_argument("--rate", type=float, required=True)
parser.add_argument("--resume")
parser.add_argument("--out", required=True)
parser.add_argument("--end", default="well")
parser.add_argument("--words")
args = parser.parse_args()

note(
    "start",
    argv=sys.argv[1:],
    cwd=os.getcwd(),
    extra=os.environ.get("EXTRA"),
    devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
)
if args.end in ("waits", "will not end", "leaves one behind"):
    if args.end == "will not end":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, on_sigterm)
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    note("waiting", helper=helper.pid)
    while args.end != "leaves one behind":
        time.sleep(0.1)

w = 0.0
if args.resume:
    with open(args.resume) as file:
        w = json.load(file)["w"]
w += args.rate * (args.target - w)
print(f"epoch 1 loss={(w - args.target) ** 2!r}\rbar [####]")
if args.end == "device memory":
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
if args.end.startswith("status"):
    print("this went wrong", file=sys.stderr)
    sys.exit(int(args.end.split()[1]))
if args.end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if args.end != "saves nothing":
    with open(os.path.join(args.out, "w.json"), "w") as file:
        json.dump(
            {"w": w, "history": [{"score": 0.0}, {"score": 1 - (w - args.target) ** 2}]}, file
        )
if args.end != "no score":
    score = "high" if args.end == "text" else 1 - (w - args.target) ** 2
    print(json.dumps({"eval": {"score": score}}))
print("done", end="")
