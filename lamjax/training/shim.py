class _F:
    wait_fraction = 0.0

    def __init__(self, it, put):
        self.it = it
        self.put = put

    def __iter__(self):
        return map(self.put, self.it)

    def __enter__(self):
        return self

    def __exit__(self, *a):
        pass


def prefetch(it, put):
    return _F(it, put)
