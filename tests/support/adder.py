"""A program that adds 1 to a number in a file, again and again, under a lock: `adder.py KIND LOCK NUMBER TIMES UNLOCK`.

It says "ready" and begins when its standard input ends. KIND is flock or lockf; LOCK and NUMBER are files, or one and
the same; UNLOCK is "unlock", or "close" where closing the file is to be enough.
"""

import fcntl
import sys


def add(file):
    number = int(file.read(20))  # read() asks for the size first, and so refreshes what the mount knows of the file
    file.seek(0)
    file.truncate()
    file.write(b"%d" % (number + 1))


def main(kind, lock, number, times, unlock):
    print("ready", flush=True)
    sys.stdin.read()
    change = getattr(fcntl, kind)
    for _ in range(int(times)):
        with open(lock, "r+b", buffering=0) as held:
            change(held, fcntl.LOCK_EX)
            if number == lock:
                add(held)
            else:
                with open(number, "r+b", buffering=0) as other:
                    add(other)
            if unlock == "unlock":
                change(held, fcntl.LOCK_UN)


main(*sys.argv[1:])
