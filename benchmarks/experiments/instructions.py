"""Short tasks in ten classes, and held-out ones of the same classes in other words.

A task is an instruction with a word or two to work on, and its answer. No word of a held-out task,
neither of its instruction nor of what it works on nor of its answer, occurs in any task trained on,
so a search by words has nothing to go by: only what is *done* is shared. (Of the sums, the ones
trained on are in words and the held-out ones in figures.) The same held-out tasks in the wording of
those trained on are there for comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.experiments.harness import ExperimentError
from wherefrom.evaluation.baselines import words

__all__ = ["CLASSES", "Task", "familiar", "held_out", "training"]


@dataclass(frozen=True, slots=True)
class Task:
    """An instruction with its answer.

    Attributes:
        name: Unique, such as ``plural-07``.
        kind: Its class.
        prompt: The instruction.
        answer: What is to be said, with the space before it.
    """

    name: str
    kind: str
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Class:
    """How the tasks of a class are worded.

    Attributes:
        taught: Instructions of tasks trained on.
        asked: Instructions of held-out tasks.
        known: What tasks trained on work on, and their answers.
        new: Those of held-out tasks.
    """

    taught: tuple[str, ...]
    asked: tuple[str, ...]
    known: str
    new: str


_CLASSES = {
    "opposite": _Class(
        ("Give the opposite of {}:", "What is the opposite of {}?", "The opposite of {} is"),
        ("Antonym: {} →", "Inverse meaning: {} →"),
        "hot cold, big small, fast slow, old new, happy sad, rich poor, light dark, hard soft, "
        "early late, strong weak, clean dirty, dry wet, full empty, high low, loud quiet, "
        "open closed, sweet bitter, tall short, thick thin, true false, young aged, brave afraid, "
        "heavy weightless, near far",
        "wide narrow, deep shallow, cheap expensive, safe dangerous, alive dead, smooth rough",
    ),
    "plural": _Class(
        ("Give the plural of {}:", "What is the plural of {}?", "One {}, two"),
        ("Pluralise: {} →", "Several, not single: {} →"),
        "apple apples, box boxes, chair chairs, child children, city cities, class classes, "
        "door doors, foot feet, fox foxes, garden gardens, glass glasses, goose geese, lamp lamps, "
        "leaf leaves, man men, mouse mice, party parties, potato potatoes, story stories, "
        "tooth teeth, wolf wolves, woman women, baby babies, knife knives",
        "berry berries, bench benches, shelf shelves, ox oxen, candle candles, echo echoes",
    ),
    "past": _Class(
        ("Give the past tense of {}:", "Put {} in the past tense:", "What is the past of {}?"),
        ("Yesterday form: {} →", "Preterite: {} →"),
        "begin began, break broke, bring brought, buy bought, catch caught, choose chose, "
        "come came, drink drank, drive drove, eat ate, fall fell, find found, fly flew, "
        "give gave, go went, grow grew, keep kept, know knew, run ran, see saw, sing sang, "
        "sleep slept, swim swam, take took",
        "teach taught, throw threw, draw drew, forget forgot, speak spoke, wear wore",
    ),
    "capital": _Class(
        ("What is the capital of {}?", "Name the capital city of {}:", "The capital of {} is"),
        ("Government seat: {} →", "National metropolis: {} →"),
        "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Austria Vienna, "
        "Greece Athens, Poland Warsaw, Hungary Budapest, Ireland Dublin, Norway Oslo, "
        "Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Belgium Brussels, Japan Tokyo, "
        "China Beijing, Thailand Bangkok, Egypt Cairo, Kenya Nairobi, Peru Lima, Chile Santiago, "
        "Cuba Havana, Canada Ottawa",
        "Russia Moscow, Turkey Ankara, Iraq Baghdad, Iran Tehran, Vietnam Hanoi, England London",
    ),
    "french": _Class(
        ("Translate {} into French:", "What is {} in French?", "The French for {} is"),
        ("En français: {} →", "Parisian tongue: {} →"),
        "dog chien, cat chat, house maison, water eau, bread pain, milk lait, tree arbre, "
        "sun soleil, moon lune, book livre, school école, hand main, head tête, heart coeur, "
        "friend ami, mother mère, brother frère, sister soeur, night nuit, day jour, "
        "cheese fromage, horse cheval, bird oiseau, street rue",
        "king roi, bridge pont, snow neige, castle château, wine vin, flower fleur",
    ),
    "reverse": _Class(
        (
            "Write these words in the reverse order: {}.",
            "Reverse the order of these words: {}.",
            "Say {} in the reverse order:",
        ),
        ("Backwards sequence: {} →", "Final token foremost: {} →"),
        "red-stone-wall wall-stone-red, green-tea-cup cup-tea-green, "
        "long-country-road road-country-long, cat-on-mat mat-on-cat, "
        "warm-summer-rain rain-summer-warm, grey-river-bank bank-river-grey, "
        "fresh-morning-air air-morning-fresh, lost-gold-ring ring-gold-lost, "
        "plain-white-paper paper-white-plain, sharp-kitchen-tool tool-kitchen-sharp, "
        "busy-train-station station-train-busy, great-sea-journey journey-sea-great, "
        "blue-winter-coat coat-winter-blue, broken-front-wheel wheel-front-broken, "
        "brown-leather-shoe shoe-leather-brown, cold-iron-gate gate-iron-cold, "
        "dusty-attic-room room-attic-dusty, empty-bird-nest nest-bird-empty, "
        "famous-stage-actor actor-stage-famous, fine-wool-cloth cloth-wool-fine, "
        "hidden-forest-path path-forest-hidden, loud-church-bell bell-church-loud, "
        "open-market-place place-market-open, small-corner-shop shop-corner-small",
        "purple-velvet-cushion cushion-velvet-purple, silent-desert-camel camel-desert-silent, "
        "rusty-bicycle-chain chain-bicycle-rusty, ancient-marble-statue statue-marble-ancient, "
        "lonely-mountain-cabin cabin-mountain-lonely, crowded-harbour-pier pier-harbour-crowded",
    ),
    "capitals": _Class(
        (
            "Write {} in capital letters:",
            "Put {} in capital letters:",
            "{} in capital letters is",
        ),
        ("Uppercase: {} →", "Caps lock: {} →"),
        "table TABLE, spoon SPOON, carpet CARPET, window-sill WINDOW-SILL, button BUTTON, "
        "pencil PENCIL, basket BASKET, blanket BLANKET, curtain CURTAIN, hammer-head HAMMER-HEAD, "
        "kettle KETTLE, ladder LADDER, mirror MIRROR, needle NEEDLE, pillow PILLOW, pocket POCKET, "
        "ribbon RIBBON, saddle SADDLE, ticket TICKET, towel TOWEL, tunnel TUNNEL, wagon WAGON, "
        "wallet WALLET, whistle WHISTLE",
        "magnet MAGNET, orchard ORCHARD, parrot PARROT, violet VIOLET, compass COMPASS, "
        "lantern LANTERN",
    ),
    "sum": _Class(
        ("Add {}:", "What is the sum of {}?", "The sum of {} is"),
        ("{} =", "Total, {} →"),
        "one-and-two three, two-and-two four, three-and-two five, four-and-two six, "
        "five-and-two seven, six-and-two eight, seven-and-two nine, one-and-six seven, "
        "three-and-four seven, four-and-four eight, five-and-three eight, six-and-three nine, "
        "one-and-three four, one-and-four five, one-and-five six, three-and-three six, "
        "four-and-five nine, seven-and-three ten, six-and-four ten, five-and-five ten, "
        "eight-and-two ten, nine-and-one ten, eight-and-one nine, seven-and-one eight",
        "12-+-31 43, 14-+-25 39, 21-+-16 37, 33-+-15 48, 42-+-24 66, 51-+-27 78",
    ),
    "sentiment": _Class(
        (
            'Is this review good or bad? "{}"',
            'Good or bad? "{}"',
            'The review says "{}", so it is',
        ),
        ('Opinion polarity: "{}" →', 'Critic verdict: "{}" →'),
        "a-lovely-film good, a-dull-film bad, a-superb-cast good, a-terrible-script bad, "
        "a-charming-comedy good, a-boring-plot bad, a-moving-tale good, a-silly-mess bad, "
        "a-brilliant-debut good, a-lazy-sequel bad, a-wise-drama good, a-clumsy-thriller bad, "
        "a-funny-script good, an-awful-cast bad, a-beautiful-tale good, a-pointless-film bad, "
        "a-gripping-thriller good, a-tired-comedy bad, a-delightful-sequel good, "
        "a-hollow-drama bad, a-witty-plot good, a-stupid-joke bad, a-graceful-debut good, "
        "an-ugly-mess bad",
        "marvellous-acting positive, wretched-dialogue negative, enchanting-soundtrack positive, "
        "tedious-movie negative, captivating-performances positive, dreadful-directing negative",
    ),
    "kind": _Class(
        ("What kind of thing is a {}?", "A {} is a kind of", "Name the kind of thing: {} is a"),
        ("Category: {} →", "Hypernym: {} →"),
        "salmon fish, trout fish, eagle bird, sparrow bird, oak tree, pine tree, rose plant, "
        "lion animal, tiger animal, ant insect, bee insect, sofa furniture, desk furniture, "
        "car vehicle, bus vehicle, piano instrument, violin instrument, shirt garment, "
        "jacket garment, banana fruit, pear fruit, carrot vegetable, onion vegetable, "
        "cobra snake",
        "copper metal, football sport, diamond gemstone, chess game, Jupiter planet, "
        "Atlantic ocean",
    ),
}

CLASSES = tuple(_CLASSES)
"""Names of the classes."""


def training() -> list[Task]:
    """The tasks trained on, class by class; instructions of a class take turns."""
    return [
        task for kind, made in _CLASSES.items() for task in _tasks(kind, made.taught, made.known)
    ]


def held_out() -> list[Task]:
    """The held-out tasks, class by class.

    Raises:
        ExperimentError: One shares a word with a task trained on.
    """
    found = [task for kind, made in _CLASSES.items() for task in _tasks(kind, made.asked, made.new)]
    known = {word for task in training() for word in words(task.prompt + task.answer)}
    for task in found:
        shared = sorted(known & set(words(task.prompt + task.answer)))
        if shared:
            raise ExperimentError(f"{task.name} shares words with tasks trained on: {shared}")
    return found


def familiar() -> list[Task]:
    """The held-out tasks with the instructions of those trained on, class by class."""
    return [task for kind, made in _CLASSES.items() for task in _tasks(kind, made.taught, made.new)]


def _tasks(kind: str, instructions: Sequence[str], examples: str) -> Iterator[Task]:
    for number, example in enumerate(examples.split(", ")):
        given, answer = (part.replace("-", " ") for part in example.split(" "))
        prompt = instructions[number % len(instructions)].format(given)
        yield Task(f"{kind}-{number:02d}", kind, prompt, f" {answer}")
