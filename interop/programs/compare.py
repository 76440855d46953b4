"""Runs a program that others wrote on etcd and on the ring under test, and compares what it sees.

    compare.py --name NAME --max-s SECONDS --run COMMAND --etcd HOST:PORT,... --satrap HOST:PORT,...

COMMAND gets the endpoints as its last argument and prints an account, which must be the same for both,
word for word. A line that begins with `# ` is a remark: printed, not compared. Both run at once.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading


# The programs that run, each of which leads a group.
RUNNING = []


def play(command, endpoints, max_s):
    """The account of one side; its end says if the program failed or took too long."""
    with subprocess.Popen([*shlex.split(command), endpoints], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, start_new_session=True) as program:
        RUNNING.append(program)
        late = threading.Event()

        def end():
            late.set()
            os.killpg(program.pid, signal.SIGTERM)
            # The program may have what it started to end first.
            try:
                program.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(program.pid, signal.SIGKILL)

        timer = threading.Timer(max_s, end)
        timer.start()
        lines = program.stdout.read().splitlines()
        code = program.wait()
        timer.cancel()
    if late.is_set():
        lines.append(f"FAILED: did not end within {max_s} s")
    elif code != 0:
        lines.append(f"FAILED: ended with {code}")
    return lines


def main(arguments):
    """Returns 0 if both accounts are the same and neither side failed."""
    sides = {"etcd": [], "satrap": []}
    threads = []
    for side, account in sides.items():
        def run(account=account, endpoints=getattr(arguments, side)):
            account.extend(play(arguments.run, endpoints, arguments.max_s))
        threads.append(threading.Thread(target=run))
        threads[-1].start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        for program in RUNNING:
            if program.poll() is None:
                os.killpg(program.pid, signal.SIGTERM)
        raise
    for side, account in sides.items():
        for line in account:
            if line.startswith("# "):
                print(f"{arguments.name}, {side}: {line[2:]}")
    left, right = ([line for line in account if not line.startswith("# ")] for account in sides.values())
    failed = any(line.startswith("FAILED") for line in left + right)
    if left != right or failed or not left:
        at = next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))
        print(f"DIFFERENCE, {arguments.name}, line {at + 1}")
        for side, account in zip(sides, (left, right)):
            print(f"--- {side}", *account[max(0, at - 3):at + 3], sep="\n")
            if any(line.startswith("FAILED") for line in account):
                print("...", *account[-40:], sep="\n")
        return 1
    print(f"{arguments.name}: {len(left)} observations, 0 differences")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for needed in ("name", "run", "etcd", "satrap"):
        parser.add_argument(f"--{needed}", required=True)
    parser.add_argument("--max-s", type=float, required=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main(parser.parse_args()))
