"""A program that locks files in random order, writes nothing, and lets go: `random_locker.py FILE...`.

It goes on until its standard input ends.
"""

import fcntl
import random
import select
import sys
import time


def lock(file, change, how):
    try:
        change(file, how)
    except BlockingIOError:
        return
    time.sleep(random.choice((0, 0.002, 0.01)))
    if random.random() < 0.5:
        change(file, fcntl.LOCK_UN)


def main(*files):
    while not select.select([sys.stdin], [], [], 0)[0]:
        with open(random.choice(files), "r+b", buffering=0) as file:
            how = random.choice((fcntl.LOCK_EX, fcntl.LOCK_SH)) | random.choice((0, 0, fcntl.LOCK_NB))
            lock(file, random.choice((fcntl.flock, fcntl.lockf)), how)


main(*sys.argv[1:])
