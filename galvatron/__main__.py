"""`python -m galvatron` is the command `galvatron`."""

from galvatron.cli import main

if __name__ == "__main__":
    main()
