import time
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from dsh_cli.words import natural

names = st.text(st.sampled_from("aAbBéÉß 019٣３-\udcff"), max_size=6)


def test_numbers_in_names_sort_as_people_count() -> None:
    ordered = [
        "", "9", "10", "a", "B", "b1", "item", "item 1", "Item 2", "item 02b", "item 10", "item 10 b 9", "item 10 b 10",
        "item ٣٠", "item ３１", "item x",
    ]  # fmt: skip
    shuffled = Random(0).sample(ordered, len(ordered))
    assert sorted(shuffled, key=natural) == ordered


@given(st.lists(st.integers(0, 10**30)))
def test_numbers_sort_by_value(numbers: list[int]) -> None:
    assert sorted(map(str, numbers), key=natural) == [str(number) for number in sorted(numbers)]
    assert sorted((f"item {number} of" for number in numbers), key=natural) == [
        f"item {number} of" for number in sorted(numbers)
    ]


@given(st.lists(st.tuples(st.text("aBc_", min_size=1), st.integers(0, 200)), unique=True))
def test_words_sort_before_the_numbers_after_them(pairs: list[tuple[str, int]]) -> None:
    by_hand = sorted(pairs, key=lambda pair: (pair[0].casefold(), pair[1], pair[0]))
    assert sorted((f"{word}{number}" for word, number in pairs), key=natural) == [f"{w}{n}" for w, n in by_hand]


@given(names, names, names)
def test_the_order_is_total(a: str, b: str, c: str) -> None:
    assert (natural(a) == natural(b)) == (a == b)
    assert (natural(a) < natural(b)) + (natural(b) < natural(a)) + (a == b) == 1
    assert not natural(a) < natural(b) < natural(c) or natural(a) < natural(c)


def test_a_name_of_millions_of_digits_is_no_work() -> None:
    many = "1" * 3_000_000
    start = time.process_time()
    assert sorted([many + "0", "2", many], key=natural) == ["2", many, many + "0"]
    assert time.process_time() - start < 2
