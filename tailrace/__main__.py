"""`python -m tailrace`: the same as the `tailrace` command."""

from engine.__main__ import main

if __name__ == "__main__":
    main()
