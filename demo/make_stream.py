"""Write a stream of three short text tasks as JSONL files.

Usage: ``python make_stream.py [FOLDER]`` (default folder: ``demo/data``).

For each task the folder receives ``<name>.train.jsonl`` (240 rows) and ``<name>.test.jsonl``
(60 rows). A row is ``{"prompt": ..., "answer": ...}``. The tasks, in the order of the stream:

* ``tickets``: route a support ticket to one of five teams;
* ``dates``: rewrite a date as ``YYYY-MM-DD``;
* ``reviews``: label a product review as positive, negative or mixed.

The output depends only on ``SEED``. No test input occurs in the training set, no date of the
test set is an answer of the training set, and every second test row is filled with words that
the training set keeps out of these places.
"""

from __future__ import annotations

import json
import random
import re
import sys
from datetime import date, timedelta
from pathlib import Path

SEED = 7
N_TRAIN = 240
N_TEST = 60

Row = dict[str, str]
Fillers = dict[str, str]  # slot -> "for training / ... | for testing only / ..."

OPENERS = ("", "", "", "Hi, ", "Hello, ", "Urgent: ")
CLOSERS = ("", "", "", " Thanks!", " Please help.", " Can you check?")

TICKETS: dict[str, tuple[tuple[str, ...], Fillers]] = {
    "billing": (
        (
            "I was charged twice for {doc}.",
            "I was charged {sum} for {doc}, that is too much.",
            "{doc} shows the wrong amount, it should be {sum}.",
            "{what} is missing on {doc}.",
            "can you correct {what} on {doc}?",
            "how do I change the card that pays {doc}?",
        ),
        {
            "doc": "the March invoice / the May invoice / last month's invoice / our annual invoice"
            " / the invoice for ten seats | the October invoice / the quarterly invoice",
            "sum": "49 euros / 120 dollars / 19 pounds / 300 euros | 80 dollars / 65 euros",
            "what": "the VAT number / our company address / the order number / the tax rate"
            " | the cost centre / the net amount",
        },
    ),
    "shipping": (
        (
            "{item} has been stuck {place} for {time}.",
            "the courier left {item} {spot}.",
            "the tracking page has not changed for {time}, where is {item}?",
            "when will {item} be delivered? It is {time} late.",
            "can I change the delivery address for {item}?",
            "{item} was delivered to the wrong address.",
        ),
        {
            "item": "my parcel / the package / my order / the spare part / the box of cables"
            " | the pallet / the desk lamp",
            "place": "at the depot / in customs / with the courier | at the harbour / in transit",
            "spot": "with a neighbour / in the rain / at the wrong door / behind the bins"
            " | at another office / in the garage",
            "time": "two days / a week / ten days / three days | five days / a month",
        },
    ),
    "login": (
        (
            "I cannot sign in {device} since {cause}.",
            "my password is rejected {device} after {cause}.",
            "the login code never arrives {device}.",
            "my account is locked {device} after {n} wrong passwords.",
            "{user} cannot log in {device}, the password is not accepted.",
            "how do I reset the password of {user}?",
        ),
        {
            "device": "on my phone / in the browser / on the new laptop / at home"
            " | on the tablet / over the VPN",
            "cause": "the password reset / the update / my holiday / changing my email"
            " | the migration / changing my number",
            "n": "three / four / six | five / ten",
            "user": "my colleague / our new hire / the intern / our accountant"
            " | our trainee / my manager",
        },
    ),
    "refunds": (
        (
            "I sent {item} back {ago} and still wait for my refund.",
            "please refund {item}, because {why}.",
            "I want my money back for {item}, because {why}.",
            "I returned {item} {ago}, when do I get my money back?",
            "can I return {item} and get a refund?",
            "the refund for {item} was promised {ago} but never came.",
        ),
        {
            "item": "the jacket / the headset / the broken kettle / the second chair / the backpack"
            " | the cracked mug / the winter coat",
            "ago": "two weeks ago / on Monday / last month / ten days ago | in April / last Friday",
            "why": "it does not fit / it came damaged / I changed my mind / I ordered too many"
            " | it has the wrong colour / I never used it",
        },
    ),
    "outage": (
        (
            "{service} {sign} {since}.",
            "nobody here can open {service}, it {sign} {since}.",
            "is there an outage? {service} {sign}.",
            "since the last release {service} {sign}.",
            "our monitoring says that {service} {sign}.",
            "production is affected because {service} {sign} {since}.",
        ),
        {
            "service": "the dashboard / the API / your website / the search page / the mobile app"
            " | the export service / the chat server",
            "sign": "returns error 500 / is down / does not load / times out / is unreachable"
            " | shows a blank page / answers with error 503",
            "since": "this morning / for all our users / again | in all regions / tonight",
        },
    ),
}

DATE_FRAMES = (
    "{d} / invoice dated {d} / the meeting on {d} / signed on {d} / delivery due on {d}"
    " / the contract ends on {d} / last updated on {d} / valid until {d} / order placed on {d}"
    " | the warranty expires on {d} / servers moved on {d} / payment received on {d}"
)

# (praise, complaint) about the same side of a product, so that a mixed review never says both.
ASPECTS: dict[bool, tuple[tuple[str, str], ...]] = {
    False: (
        ("it works perfectly", "it stopped working after a week"),
        ("it was easy to set up", "the setup took hours"),
        ("the quality is excellent", "the plastic feels cheap"),
        ("it looks beautiful", "it looks ugly"),
        ("the price is fair", "it is far too expensive"),
        ("it is very quiet", "it is terribly loud"),
        ("the manual is clear", "the manual is useless"),
        ("delivery was quick", "it arrived late and scratched"),
        ("support was friendly", "support never answered"),
    ),
    True: (
        ("it feels sturdy", "it broke on the first day"),
        ("cleaning is simple", "it is hard to clean"),
        ("it saves a lot of time", "it wastes my time"),
        ("it smells nice", "it smells awful"),
    ),
}
PRODUCTS = (
    "kettle / blender / desk lamp / keyboard / toaster / vacuum cleaner / fan / coffee machine"
    " | heater / printer / rice cooker / hair dryer"
)
REVIEWS: dict[str, tuple[str, ...]] = {
    "positive": (
        "I love this {p}, {good} and {good2}.",
        "great {p}! {good} and {good2}.",
        "very happy with the {p}: {good}.",
        "best {p} I have owned, {good}.",
        "{good} and {good2}. I would buy this {p} again.",
    ),
    "negative": (
        "I regret buying this {p}, {bad} and {bad2}.",
        "terrible {p}! {bad} and {bad2}.",
        "very disappointed with the {p}: {bad}.",
        "worst {p} I have owned, {bad}.",
        "{bad} and {bad2}. I would not buy this {p} again.",
    ),
    "mixed": (
        "the {p} is okay: {good}, but {bad2}.",
        "{good}, but {bad2}. An average {p}.",
        "I like that {good}, but sadly {bad2}.",
        "not sure about this {p}: {good}, although {bad2}.",
        "{bad}, but at least {good2}. So-so {p}.",
    ),
}


def pick(rng: random.Random, fillers: str, unseen: bool) -> str:
    """Choose a filler: one kept for testing if ``unseen``, else one for training."""
    return rng.choice(fillers.split(" | ")[unseen].split(" / "))


def polish(rng: random.Random, text: str) -> str:
    """Start sentences with a capital; now and then type carelessly instead."""
    text = re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)
    style = rng.random()
    if style < 0.2:
        return text.lower()
    if style < 0.35:  # swap two neighbouring letters inside one longer word
        start = rng.choice([m.start() for m in re.finditer(r"\b[a-z]{5,}\b", text)]) + 1
        text = text[:start] + text[start + 1] + text[start] + text[start + 2 :]
    return text


def ticket(rng: random.Random, team: str, unseen: bool) -> str:
    """Return the text of a ticket for ``team``."""
    templates, fillers = TICKETS[team]
    words = {slot: pick(rng, choices, unseen) for slot, choices in fillers.items()}
    return rng.choice(templates).format(**words)


def review(rng: random.Random, label: str, unseen: bool) -> str:
    """Return the text of a review that deserves ``label``."""
    (good, bad), (good2, bad2) = rng.sample(ASPECTS[unseen], 2)
    words = {"good": good, "bad": bad, "good2": good2, "bad2": bad2}
    return rng.choice(REVIEWS[label]).format(p=pick(rng, PRODUCTS, unseen), **words)


def date_forms(day: date) -> list[str]:
    """Return the ways in which people write ``day``."""
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    nth = f"{day.day}{'th' if 11 <= day.day <= 13 else suffix}"
    month, short, year = f"{day:%B}", f"{day:%b}", day.year
    return [
        f"{month} {nth}, {year}",
        f"{day.day} {short} {year}",
        f"the {nth} of {month} {year}",
        f"{short} {day.day}, {year}",
        f"{day.day} {month} {year}",
        f"{day:%A}, {month} {day.day}, {year}",
    ]


def labelled(rng: random.Random, name: str) -> tuple[list[Row], list[Row]]:
    """Return the training and test rows of a classification task, with balanced labels."""
    labels = list(TICKETS if name == "tickets" else REVIEWS)
    used: set[str] = set()
    splits: list[list[Row]] = []
    for size, testing in ((N_TRAIN, False), (N_TEST, True)):
        rows: list[Row] = []
        while len(rows) < size:
            label = labels[len(rows) % len(labels)]
            unseen = testing and len(rows) // len(labels) % 2 == 1
            text = (ticket if name == "tickets" else review)(rng, label, unseen)
            if text in used:
                continue
            used.add(text)
            if name == "tickets":
                text = polish(rng, rng.choice(OPENERS) + text + rng.choice(CLOSERS))
                prompt = f"Route the ticket to a team.\nTicket: {text}\nTeam:"
            else:
                prompt = f"Judge the product review.\nReview: {polish(rng, text)}\nOpinion:"
            rows.append({"prompt": prompt, "answer": label})
        rng.shuffle(rows)
        splits.append(rows)
    return splits[0], splits[1]


def dates(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Return the training and test rows of the date task; all 300 dates are different."""
    rows: list[Row] = []
    for i, offset in enumerate(rng.sample(range(365 * 25), N_TRAIN + N_TEST)):
        day = date(2000, 1, 1) + timedelta(days=offset)
        forms = date_forms(day)
        unseen = i >= N_TRAIN and i // len(forms) % 2 == 1
        text = pick(rng, DATE_FRAMES, unseen).format(d=forms[i % len(forms)])
        text = text.lower() if rng.random() < 0.2 else text[0].upper() + text[1:]
        prompt = f"Write the date as YYYY-MM-DD.\nText: {text}\nDate:"
        rows.append({"prompt": prompt, "answer": day.isoformat()})
    return rows[:N_TRAIN], rows[N_TRAIN:]


def build(seed: int = SEED) -> dict[str, tuple[list[Row], list[Row]]]:
    """Return the stream: task name to its training and test rows, in order."""
    stream = {
        "tickets": labelled(random.Random(seed), "tickets"),
        "dates": dates(random.Random(seed + 1)),
        "reviews": labelled(random.Random(seed + 2), "reviews"),
    }
    for name, (train, test) in stream.items():
        assert (len(train), len(test)) == (N_TRAIN, N_TEST), name
        assert len({row["prompt"].lower() for row in train + test}) == N_TRAIN + N_TEST, name
    return stream


def main(argv: list[str]) -> None:
    """Write the stream to the folder ``argv[1]``."""
    folder = Path(argv[1] if len(argv) > 1 else "demo/data")
    folder.mkdir(parents=True, exist_ok=True)
    for name, (train, test) in build().items():
        for split, rows in (("train", train), ("test", test)):
            path = folder / f"{name}.{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main(sys.argv)
