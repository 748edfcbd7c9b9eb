"""`python -m counterseal` is the program `counterseal`."""

from counterseal.cli import main

if __name__ == "__main__":
    main()
