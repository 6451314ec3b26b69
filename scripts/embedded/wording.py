"""Captions of images, in many wordings that users may type.

The functions take a Random and return text. Their caller decides what a caption mentions, since an
object whose colour the caption does not name is drawn in a natural colour.
"""

from __future__ import annotations

from random import Random

from scripts.embedded.scenes import View

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "red", "red", "crimson", "scarlet"),
    "yellow": ("yellow", "yellow", "yellow", "golden"),
    "gray": ("gray", "grey"),
    "cyan": ("cyan", "turquoise"),
    "purple": ("purple", "purple", "violet"),
}
"""Colour -> its names, if it has several; a repeated name is chosen more often."""

NOUNS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "circle", "disc", "dot", "ball"),
    "square": ("square", "square", "square", "box"),
    "star": ("star",),
    "heart": ("heart",),
    "diamond": ("diamond", "diamond", "diamond", "rhombus"),
    "ring": ("ring", "ring", "ring", "donut", "hoop"),
    "cross": ("cross", "cross", "cross", "plus"),
    "house": ("house", "house", "house", "home", "hut", "cottage"),
    "flower": ("flower", "flower", "flower", "blossom"),
    "cat": ("cat", "cat", "cat", "kitten", "kitty"),
    "dog": ("dog", "dog", "dog", "puppy", "doggy"),
    "boat": ("boat", "boat", "sailboat", "ship"),
    "moon": ("moon", "moon", "crescent", "crescent moon"),
}
"""Object -> its names, if it has several; a repeated name is chosen more often."""

PLURALS: dict[str, str] = {
    "fish": "fish",
    "box": "boxes",
    "cross": "crosses",
    "plus": "plus signs",
    "rhombus": "rhombuses",
    "kitty": "kitties",
    "puppy": "puppies",
    "doggy": "doggies",
}

NUMBERS: dict[int, tuple[str, ...]] = {
    1: ("one", "1", "a single"),
    2: ("two", "two", "2", "a pair of", "a couple of"),
    3: ("three", "three", "3"),
    4: ("four", "four", "4"),
}

SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "tiny", "little"),
    "big": ("big", "big", "large", "huge", "giant"),
}

RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "above", "on top of", "over"),
    "below": ("below", "below", "under", "beneath", "underneath"),
    "beside": ("and", "and", "next to", "beside", "with"),
    "inside": ("inside", "inside", "in", "within", "inside of"),
}

PRAISE: tuple[str, ...] = (
    "lovely",
    "cute",
    "nice",
    "beautiful",
    "simple",
    "pretty",
    "adorable",
    "flat",
    "plain",
    "colorful",
)

MEDIA: tuple[str, ...] = (
    "a picture of ",
    "a picture of ",
    "an image of ",
    "a photo of ",
    "a photo of ",
    "a photograph of ",
    "a drawing of ",
    "an illustration of ",
    "a flat illustration of ",
    "a painting of ",
    "an icon of ",
    "a cartoon of ",
    "clip art of ",
    "picture of ",
    "photo of ",
    "drawing of ",
)

REQUESTS: tuple[str, ...] = (
    "draw ",
    "draw ",
    "please draw ",
    "draw me ",
    "can you draw ",
    "could you draw ",
    "paint ",
    "create ",
    "generate ",
    "make ",
    "make me ",
    "show me ",
    "give me ",
    "i want ",
    "i would like ",
    "I want ",
    "i want to draw ",
    "I would like to make ",
    "I want to paint ",
    "there is ",
    "imagine ",
)

ENDINGS: tuple[str, ...] = (
    ".",
    ".",
    "!",
    ", please",
    ", high quality",
    ", high quality.",
    ", best quality",
    ", 4k",
    ", 8k",
    ", hd",
    ", highly detailed",
    ", detailed",
    ", masterpiece",
    ", flat style",
    ", flat design",
    ", minimalist",
    ", minimal",
    ", simple",
    ", vector art",
    ", digital art",
    ", cartoon style",
    ", clean lines",
    ", sharp",
    ", professional",
    ", vibrant colors",
    ", bright colors",
    ", beautiful",
    ", art",
)

FILLER: tuple[str, ...] = (
    "cute",
    "nice",
    "my",
    "the",
    "lovely",
    "modern",
    "best",
    "very",
    "some",
    "style",
    "art",
    "magic",
    "cool",
    "detailed",
    "amazing",
    "new",
    "old",
    "simple",
    "just",
    "really",
    "so",
    "pretty",
    "good",
    "great",
    "perfect",
)

TIME_WORDS: dict[str, tuple[str, ...]] = {
    "day": ("by day", "on a sunny day", "under a blue sky", "in the morning", "in daylight"),
    "sunset": ("at sunset", "at sunset", "at sunrise", "at dusk", "in the evening", "at dawn"),
    "night": ("at night", "at night", "by night", "under the stars", "at midnight"),
}

GROUND_WORDS: dict[str, tuple[str, ...]] = {
    "mountains": ("mountains", "the mountains", "a mountain", "the mountain", "rocky mountains"),
    "snow": ("snowy mountains", "mountains with snow", "the snow", "a snowy landscape"),
    "sea": ("the sea", "the ocean", "the water", "a lake", "the beach", "the sea"),
    "hills": ("green hills", "hills", "a meadow", "the hills", "a field", "the countryside"),
    "desert": ("the desert", "a desert", "sand dunes", "the desert"),
    "city": ("a city", "a city skyline", "the city", "a town", "skyscrapers", "tall buildings"),
    "forest": ("a forest", "the forest", "the woods", "pine trees", "a forest"),
}

BARE_SCENES: dict[str, tuple[str, ...]] = {
    "day": ("landscape", "blue sky", "a sunny day", "a landscape"),
    "sunset": ("sunset", "sunset", "sunrise", "sunset sky"),
    "night": ("night", "night sky", "starry night", "a night sky"),
}
"""A landscape in a word or two."""

EXTRA_WORDS: dict[str, tuple[str, ...]] = {
    "boat": ("a boat", "a boat", "a sailboat", "a ship"),
    "house": ("a house", "a house", "a cottage", "a small house"),
    "tree": ("a tree", "a tree", "one tree"),
    "cactus": ("a cactus",),
}

SCENE_PRAISE: tuple[str, ...] = (
    "beautiful ",
    "vibrant ",
    "colorful ",
    "calm ",
    "lovely ",
    "bright ",
)

SETTING_WORDS: dict[str, tuple[str, ...]] = {
    "autumn": ("in autumn leaves", "in autumn leaves", "in the autumn leaves", "in autumn",
               "in fall leaves", "among autumn leaves", "in the fall"),
    "winter": ("in the snow", "in winter", "in snow", "on a snowy day"),
    "meadow": ("in the grass", "on the grass", "in a park", "in a meadow", "in a garden"),
}  # fmt: skip


def article(words: str) -> str:
    """Put "a" or "an" in front."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def colour_word(rng: Random, colour: str) -> str:
    """Return one of the names of a palette colour."""
    return rng.choice(COLOUR_WORDS.get(colour, (colour,)))


def noun(rng: Random, shape: str, count: int = 1) -> str:
    """Return one of the names of an object, in the plural for more than one."""
    word = rng.choice(NOUNS.get(shape, (shape,)))
    return word if count == 1 else plural(word)


def plural(word: str) -> str:
    """Return the plural of an object's name."""
    return PLURALS.get(word, word + "s")


def names(shape: str) -> list[str]:
    """Return the words, singular and plural, that name an object and rarely anything else."""
    nouns = NOUNS.get(shape, (shape,))
    phrases = {*nouns, *(plural(word) for word in nouns)}
    return sorted(
        {word for phrase in phrases for word in phrase.split()} - {"home", "plus", "signs"}
    )


def describe_things(rng: Random, shape: str, colour: str | None, size: str, count: int) -> str:
    """Return a phrase such as "a small red circle", or "two cats" without a colour and size."""
    word = noun(rng, shape, count)
    if count == 1 and not size and rng.random() < 0.08:
        return f"{colour_word(rng, colour)} {word}" if colour else word
    before = [rng.choice(SIZES[size])] if size else []
    after = ""
    if colour:
        name = colour_word(rng, colour)
        if count == 1 and rng.random() < 0.06:
            after = rng.choice((f" in {name}", f" that is {name}", f", {name}"))
        else:
            before.append(name)
    if rng.random() < (0.08 if colour else 0.2):
        before.insert(0, rng.choice(PRAISE))
    phrase = " ".join([*before, word])
    if count > 1:
        return f"{rng.choice(NUMBERS[count])} {phrase}{after}"
    return _determined(rng, phrase, before) + after


def _determined(rng: Random, phrase: str, before: list[str]) -> str:
    chance = rng.random()
    if chance < 0.68:
        return article(phrase)
    if chance < 0.82:
        return phrase
    if chance < 0.9:
        return f"the {phrase}"
    number = rng.choice(NUMBERS[1])
    return f"a {phrase}" if number == "a single" and before else f"{number} {phrase}"


def place_phrase(rng: Random, place: str) -> str:
    """Return a phrase such as " in the top left corner"."""
    if place == "center":
        return rng.choice((" in the center", " in the middle", " at the center", " in the centre"))
    if place in ("left", "right"):
        return rng.choice((f" on the {place}", f" on the {place} side", f" at the {place}"))
    if " " not in place:
        return rng.choice((f" at the {place}", f" in the {place}", f" at the {place} of the image"))
    where = (
        place if rng.random() < 0.7 else place.replace("top", "upper").replace("bottom", "lower")
    )
    return rng.choice((f" in the {where}", f" in the {where} corner", f" at the {where}"))


def say_place(rng: Random, text: str, place: str) -> str:
    """Add a place to a text, mostly at the end."""
    where = place_phrase(rng, place)
    if rng.random() < 0.15:
        return where.lstrip() + rng.choice((", ", " ", " is ")) + text
    return text + where


def add_background(rng: Random, text: str, colour: str) -> str:
    """Add the background's colour before or after the text."""
    name = colour_word(rng, colour)
    if rng.random() < 0.16:
        return rng.choice(
            (
                f"{name} background, {text}",
                f"on {article(name)} background, {text}",
                f"{article(name)} background with {text}",
                f"{article(name)} image with {text}",
                f"{name} backdrop and {text}",
                f"background {name}, {text}",
            )
        )
    return text + rng.choice(
        (
            f" on {article(name)} background",
            f" on {article(name)} background",
            f" on {article(name)} background",
            f" on {name}",
            f" on {name} background",
            f" with {article(name)} background",
            f", {name} background",
            f", {name} background",
            f" against {article(name)} background",
            f" against {article(name)} backdrop",
            f" over {article(name)} background",
            f", the background is {name}",
            f", background {name}",
            f" and {article(name)} background",
            f" and the backdrop is {name}",
            f", with {name} behind",
            f". {name.capitalize()} background",
        )
    )


def describe_plain(rng: Random, colour: str) -> str:
    """Describe an image of a single colour."""
    name = colour_word(rng, colour)
    return rng.choice(
        (
            f"{name} background",
            f"a plain {name} background",
            f"an empty {name} background",
            f"just {name}",
            f"solid {name}",
            f"{name}",
        )
    )


def describe_portrait(rng: Random, animal: str, scarf: str | None, setting: str) -> str:
    """Describe an animal's portrait; `scarf` is a colour, "" for an unnamed one, or None."""
    text = animal
    if scarf is not None:
        worn = article(f"{colour_word(rng, scarf)} scarf") if scarf else "a scarf"
        text += rng.choice((" wearing ", " wearing ", " with ")) + worn
    return f"{text} {rng.choice(SETTING_WORDS[setting])}"


def describe_scene(rng: Random, view: View) -> str:
    """Describe a landscape in more or less detail."""
    ground = rng.choice(GROUND_WORDS[view.ground])
    chance = rng.random()
    if view.extra and chance < 0.75:
        return _extra_scene(rng, view, ground)
    if chance > 0.92:
        bare = rng.choice(BARE_SCENES[view.time])
        return rng.choice((ground, ground.removeprefix("the "), bare, f"a view of {ground}"))
    return {"day": _day_scene, "sunset": _sunset_scene, "night": _night_scene}[view.time](
        rng, view, ground
    )


def _extra_scene(rng: Random, view: View, ground: str) -> str:
    extra, time = rng.choice(EXTRA_WORDS[view.extra or ""]), rng.choice(TIME_WORDS[view.time])
    if view.extra in ("house", "tree") and view.ground == "hills" and rng.random() < 0.4:
        return f"{extra} on a hill {time}"
    preposition = {"boat": "on", "house": "in", "tree": "in", "cactus": "in"}[view.extra or ""]
    return rng.choice(
        (
            f"{extra} {preposition} {ground} {time}",
            f"{extra} {preposition} {ground} {time}",
            f"{ground} with {extra} {time}",
            f"{ground} {time} with {extra}",
            f"{extra} {preposition} {ground}",
        )
    )


def _praise(rng: Random) -> str:
    return rng.choice(SCENE_PRAISE) if rng.random() < 0.3 else ""


def _sunset_scene(rng: Random, view: View, ground: str) -> str:
    praise, word = _praise(rng), rng.choice(("sunset", "sunset", "sunset", "sunrise"))
    return rng.choice(
        (
            article(f"{praise}{word} over {ground}"),
            article(f"{praise}{word} in {ground}"),
            f"{praise}{word} over {ground}",
            f"{praise}{word} in {ground}",
            f"{ground} {rng.choice(TIME_WORDS['sunset'])}",
            f"{ground} {rng.choice(TIME_WORDS['sunset'])}",
            f"an orange sky over {ground}",
            article(f"{praise}{word}"),
        )
    )


def _night_scene(rng: Random, view: View, ground: str) -> str:
    if view.light:
        above = rng.choice(("a moon", "the moon", "a full moon", "moon and stars"))
    else:
        above = rng.choice(("stars", "stars", "many stars"))
    return rng.choice(
        (
            f"a night sky with {above} over {ground}",
            f"{ground} at night with {above}",
            f"{ground} {rng.choice(TIME_WORDS['night'])}",
            f"{ground} {rng.choice(TIME_WORDS['night'])}",
            f"{article(_praise(rng) + 'night')} over {ground}",
            f"{above} over {ground} at night",
            f"a starry night over {ground}",
            "a starry night sky",
        )
    )


def _day_scene(rng: Random, view: View, ground: str) -> str:
    seen = [
        rng.choice(words)
        for words, there in (
            (("the sun", "a sun"), view.light),
            (("clouds", "white clouds"), view.clouds),
        )
        if there
    ]
    above = " with " + " and ".join(seen) if seen and rng.random() < 0.8 else ""
    praise = _praise(rng)
    return rng.choice(
        (
            f"{ground} under a blue sky{above}",
            f"{ground} {rng.choice(TIME_WORDS['day'])}{above}",
            f"{ground} {rng.choice(TIME_WORDS['day'])}",
            f"a blue sky{above} over {ground}",
            article(f"{praise}day in {ground}"),
            article(f"{praise}landscape with {ground}"),
        )
    )


def dress(rng: Random, text: str) -> str:
    """Add what users put around a description: requests, media, filler, quality, capitals."""
    chance = rng.random()
    if chance < 0.16:
        text = rng.choice(MEDIA) + text
    elif chance < 0.26:
        text = rng.choice(REQUESTS) + text
    if rng.random() < 0.08:
        words = text.split()
        words.insert(rng.randint(0, len(words)), rng.choice(FILLER))
        text = " ".join(words)
    if rng.random() < 0.24:
        text += rng.choice(ENDINGS)
    chance = rng.random()
    if chance < 0.25:
        return text[:1].upper() + text[1:]
    if chance < 0.28:
        return text.title()
    return text
