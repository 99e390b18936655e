"""What holds for every test."""

import signal


def pytest_configure() -> None:
    """Hear Ctrl-C, also where whoever runs the tests in the background has them ignore it: tests
    send it to processes that they start, which inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
