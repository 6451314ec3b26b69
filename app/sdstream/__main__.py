"""``python -m sdstream`` is the same as the ``sdstream`` command."""

from sdstream.cli.main import main

if __name__ == "__main__":
    main()
