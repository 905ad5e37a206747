"""Everyday words, and helpers to put them into sentences."""

from collections.abc import Sequence

PEOPLE = (
    "Mina Omar Tess Jon Priya Luca Hana Otto Ruth Sami Ella Ivan Noor Finn Maya Hugo Lena "
    "Karl Zoe Amir Nora Paul Rosa Theo Vera Will Dina Emil Gina Lars"
).split()
SURNAMES = (
    "Hale Berg Cole Dunn Frost Gray Hill Jones Keene Lowe Marsh North Price Reed Stone Tate Vance Wells York Boyd"
).split()
ANIMALS = ("cat dog horse goat duck rabbit sheep parrot hamster donkey turtle pony goose hen fox squirrel").split()
THINGS = (
    "kite drum lamp basket ladder bucket pencil kettle blanket mirror hammer bottle ribbon "
    "candle wagon whistle pillow puzzle trumpet helmet lantern teapot jacket button carpet "
    "suitcase notebook bicycle shovel clock"
).split()
PLACES = (
    "kitchen garden barn library market station harbour school bakery attic forest park museum workshop cellar meadow"
).split()
FOODS = ("bread soup cheese rice porridge honey cake noodles salad jam pasta pie pudding toast yoghurt popcorn").split()
COLOURS = "red blue green yellow purple orange black white brown pink grey silver".split()
JOBS = (
    "baker teacher farmer painter driver carpenter gardener tailor sailor writer plumber "
    "dancer cook builder potter musician"
).split()
NUMBERS = "two three four five six seven eight nine ten twelve".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WEATHER = "sunny rainy windy cloudy snowy warm cold foggy".split()
WORDS = tuple(THINGS + ANIMALS + FOODS + WEATHER)


def an(noun: str) -> str:
    """Returns the noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capitalised(text: str) -> str:
    """Returns the text with its first letter capitalised and the rest unchanged."""
    return text[0].upper() + text[1:]


def joined(items: Sequence[str]) -> str:
    """Returns two or more items as "a, b and c"."""
    return ", ".join(items[:-1]) + f" and {items[-1]}"
