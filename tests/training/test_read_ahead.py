"""The thread that reads the next batch while a step is made."""

import threading

import pytest

from sgr_diffusers.training.data import read_ahead


def test_items_come_in_order_and_end():
    assert list(read_ahead(iter(range(5)))) == list(range(5))
    assert list(read_ahead(iter(()))) == []


def test_next_item_is_made_while_the_caller_works():
    began = threading.Event()

    def items():
        yield 0
        began.set()
        yield 1

    ahead = read_ahead(items())
    assert next(ahead) == 0
    assert began.wait(timeout=30)  # nobody has asked for it
    assert next(ahead) == 1


def test_no_more_than_one_item_is_made_ahead():
    made = []

    def items():
        for number in range(5):
            made.append(number)
            yield number

    ahead = read_ahead(items())
    next(ahead)
    ahead.close()  # waits for what is being made
    assert made == [0, 1]


def test_error_comes_with_its_item():
    def items():
        yield 0
        raise OSError("slice 1 cannot be read")

    ahead = read_ahead(items())
    assert next(ahead) == 0
    with pytest.raises(OSError, match="slice 1 cannot be read"):
        next(ahead)


def test_thread_ends_with_the_iteration():
    before = set(threading.enumerate())
    ahead = read_ahead(iter(range(5)))
    next(ahead)
    assert set(threading.enumerate()) != before
    ahead.close()
    assert set(threading.enumerate()) == before
