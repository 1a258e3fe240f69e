"""The smallest endpoint: a function with type hints.

headrace dev examples/hello.py        # with `headrace up`: headrace deploy, and curl needs the key
headrace call hello name=Ada
curl -d '{"name": "Ada"}' -H 'content-type: application/json' http://127.0.0.1:8700/e/hello
"""

import headrace


@headrace.endpoint
def hello(name: str = "world") -> str:
    """Greet somebody."""
    return f"Hello, {name}!"


if __name__ == "__main__":
    print(hello.local("Ada"))
