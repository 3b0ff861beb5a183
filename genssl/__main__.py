"""`python -m genssl` is `genssl`."""

from genssl.cli import main

if __name__ == "__main__":
    main()
