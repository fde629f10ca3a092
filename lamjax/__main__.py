"""The command `lamjax`, also `python -m lamjax`: what must be set before anything else is loaded."""

import os
import platform
import sys

HUGE_PAGES = "glibc.malloc.hugetlb=1"


def main() -> None:
    """Run the command with its memory in huge pages."""
    with_huge_pages()
    from lamjax.cli import main as command

    command()


def with_huge_pages() -> None:
    """Begin this process anew with GLIBC_TUNABLES that ask for huge pages; it reads them only when it starts.

    XLA's temporaries are mapped anew in every call; in small pages that is up to a third of a step's time.
    A user's own glibc.malloc.hugetlb (0: off) is left as it is.
    """
    present = os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or HUGE_PAGES.partition("=")[0] in present:
        return
    tunables = f"{present}:{HUGE_PAGES}" if present else HUGE_PAGES
    sys.stdout.flush()
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": tunables})
    except OSError:
        return  # slower, nothing else


if __name__ == "__main__":
    main()
