"""A generator: each item is sent as soon as it is made.

    headrace dev examples/streaming.py    # with `headrace up`: headrace deploy, and curl needs the key
    curl -N -d '{"text": "one word at a time"}' -H 'content-type: application/json' \\
        http://127.0.0.1:8700/e/words

A client that accepts ``text/event-stream`` gets server-sent events, any other one JSON value per line. When
the client hangs up, the generator is closed.
"""

import time
from collections.abc import Iterator

import headrace


@headrace.endpoint
def words(text: str, delay: float = 0.05) -> Iterator[dict[str, int | str]]:
    """Give the words of a text one by one, like a language model gives its tokens."""
    for index, word in enumerate(text.split()):
        if index:
            time.sleep(min(delay, 1.0))
        yield {"index": index, "word": word}


if __name__ == "__main__":
    for item in words.local("one word at a time"):
        print(item)
