"""``python -m nni_gconv`` is the command ``nni-gconv``."""

from nni_gconv.cli import main

if __name__ == "__main__":
    main()
