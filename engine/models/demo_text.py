"""The text that the demo model learns from: little conversations, from a grammar.

`documents(seed)` yields documents without end. A document is a list of
`(role, text)` with the roles system, user, assistant, tools (the list of them)
and tool (what one said), or one `("text", ...)` for plain prose, or one
`("drill", ...)`, to be said four times. The same seed yields the same documents.

The facts are in `demo_facts.py`; here is how they become questions, answers,
stories and everything else that a person may try on a demo.
"""

import random

from demo_facts import (
    ANIMALS, ASSISTANT, CAST, COLOURS, GREETINGS, HELPERS, JOKES, LISTS, MIXES,
    OPPOSITES, PLACES, POEMS, SYSTEM, TOPICS, UNKNOWN,
)
from demo_tools import drill, thought, with_tools

ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen "
        "fourteen fifteen sixteen seventeen eighteen nineteen twenty").split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September October "
          "November December").split()
SEASONS = ["spring", "summer", "autumn", "winter"]


def documents(seed, shares=(0.0, 0.3)):
    """Documents without end, always the same for a seed. `shares`: of drills, and of conversations with tools."""
    rng = random.Random(seed)
    drills, tools = shares
    while True:
        kind = rng.random()
        if kind < drills:
            yield [("drill", drill(rng))]
        elif kind < drills + tools:
            yield with_tools(rng, small_talk)
        elif rng.random() < 0.06:
            yield [("text", plain(rng))]
        else:
            yield conversation(rng)


def conversation(rng):
    """One to four questions with their answers, sometimes under a system message."""
    turns = []
    if rng.random() < 0.15:
        turns.append(("system", rng.choice(SYSTEM)))
    for _ in range(rng.choices([1, 2, 3, 4], [70, 20, 7, 3])[0]):
        question, answer = small_talk(rng)
        turns += [("user", question), ("assistant", answer)]
    return turns


def small_talk(rng):
    """A question that needs no tool, as it is typed, and its answer; sometimes with the thought before it."""
    kinds, weights = zip(*KINDS)
    kind = rng.choices(kinds, weights)[0]
    question, answer = kind(rng)
    before = thought(rng, kind.__name__) if rng.random() < 0.12 else ""
    return as_typed(rng, question), before + answer


def plain(rng):
    """Prose outside a conversation: a story, or a page about one thing."""
    if rng.random() < 0.5:
        return story(rng, rng.choice(list(CAST)), rng.choice(list(PLACES)), None, rng.random() < 0.3)
    topic = rng.choice(TOPICS)
    return " ".join(rng.choice(fact) for fact in topic["facts"])


# Questions and answers, one function for each kind.

def about_topic(rng):
    topic = rng.choice(TOPICS)
    if topic["asks"] and rng.random() < 0.45:
        questions, answer = rng.choice(topic["asks"])
        return rng.choice(questions), " ".join(one_of(rng, part) for part in answer)
    name = rng.choice(topic["names"])
    bare = name.split(" ", 1)[1] if name.startswith(("a ", "an ", "the ")) else name
    many = topic.get("many") or bare
    question = rng.choice([
        "What is {name}?", "What is {name}?", "What's {name}?", "Tell me about {many}.",
        "Tell me about {name}.", "Tell me something about {many}.", "Explain {many}.",
        "What do you know about {many}?", "Can you explain what {name} is?",
        "Can you tell me about {many}?", "Describe {name}.", "Describe {name} in a few sentences.",
        "Write a few sentences about {many}.", "What can you say about {many}?",
        "I want to know more about {many}.", "Do you know what {name} is?",
        "Teach me something about {many}.", "{bare}?", "Explain {name} to me like I am five.",
        "Write a paragraph about {many}.", "How would you describe {name}?",
        "I would like to learn about {many}.", "Give me some facts about {many}.",
        "Please tell me what {name} is.", "Say something about {many}.",
    ]).format(name=name, many=many, bare=bare)
    if topic["plural"] and rng.random() < 0.3:
        question = rng.choice(["What are {many}?", "What are {many}?", "What exactly are {many}?",
                               "{many}?", "Can you tell me what {many} are?"]).format(many=many)
    facts = topic["facts"]
    if len(facts) > 4 and rng.random() < 0.3:
        facts = facts[:4]
    return capital(question), " ".join(rng.choice(fact) for fact in facts)


def assistant_itself(rng):
    questions, answer = rng.choice(ASSISTANT)
    return rng.choice(questions), " ".join(one_of(rng, part) for part in answer)


def greeting(rng):
    questions, answers = rng.choice(GREETINGS)
    return rng.choice(questions), rng.choice(answers)


def tell_story(rng):
    """A story about whom and where the question says; what it leaves open is chosen."""
    who, where = rng.choice(list(CAST)), rng.choice(list(PLACES))
    helper = None
    long = rng.random() < 0.3
    kind = rng.choice(["a long story", "a longer story", "a very long story"]) if long else rng.choice(
        ["a story", "a story", "a story", "a short story", "a little story", "a tale", "a bedtime story"])
    shape = rng.random()
    subject = article(who)
    if shape < 0.46:
        subject = f"{article(who)} and {rng.choice(['a', 'a', 'the'])} {where}".replace("a island", "an island")
    elif shape < 0.56:
        subject = f"{article(who)} {PLACES[where]['where']}"
    elif shape < 0.70:
        helper = rng.choice([name for name in HELPERS if name != who])
        subject = f"{article(who)} and {article(helper)}"
    elif shape < 0.78:
        subject = None
    elif shape < 0.86:
        who, subject = rng.choice(list(CAST)), f"a {where}".replace("a island", "an island")
    if subject is None:
        question = rng.choice([
            "Tell me {kind}.", "Write {kind}.", "I would like to hear {kind}.", "Do you know {kind}?",
            "Can you tell me {kind}?", "Make up {kind}.", "{kind}", "Another story.",
            "Tell me another story.", "Please write me {kind}."])
    else:
        question = rng.choice([
            "Tell me {kind} about {s}.", "Tell me {kind} about {s}.", "Tell me {kind} about {s}.",
            "Write {kind} about {s}.", "Write me {kind} about {s}.", "Can you tell me {kind} about {s}?",
            "I would like {kind} about {s}.", "Make up {kind} about {s}.", "{kind} about {s}",
            "Could you write {kind} about {s}?", "Do you know {kind} about {s}?",
            "Tell us {kind} with {s} in it.", "Let me hear {kind} about {s}."])
    # To say the subject again first is easy to learn, and what follows keeps to it.
    lead = f"Here is {kind} about {subject}. " if subject else ""
    return capital(question.format(kind=kind, s=subject)), lead + story(rng, who, where, helper, long)


def story(rng, who, where, helper, long):
    cast, place = CAST[who], PLACES[where]
    name, he, his = cast["name"], cast["he"], {"he": "his", "she": "her", "it": "its"}[cast["he"]]
    if helper is None:
        helper = rng.choice([h for h in HELPERS if h != who])
    friend = CAST[helper]["name"]
    case = rng.randrange(len(place["trouble"]))
    parts = [
        rng.choice([
            f"Once upon a time there was {article(cast['trait'])} {who} named {name} who lived {place['where']}.",
            f"Once there lived {article(cast['trait'])} {who} {place['where']}, and {his} name was {name}.",
            f"There was once {article(cast['trait'])} {who} called {name}, who lived {place['where']}."]),
        rng.choice(place["setting"]),
        rng.choice(cast["habit"]),
        f"{rng.choice(['One morning', 'One day', 'One evening', 'One cold night'])} {place['trouble'][case]}",
        rng.choice([
            f"{name} did not know what to do.",
            f"{name} was worried, but {he} did not give up.",
            f"{name} looked at it for a long time and thought.",
            f"\"Somebody has to do something,\" said {name}."]),
        rng.choice([
            f"Then {he} met {article(helper)} named {friend}, who {HELPERS[helper]}.",
            f"So {he} went to find {friend} the {helper}, who {HELPERS[helper]}.",
            f"Just then {friend} the {helper} came by, who {HELPERS[helper]}."]),
        rng.choice([
            f"\"Will you help me?\" asked {name}. \"Of course,\" said {friend}, \"two can do more than one.\"",
            f"\"I cannot do it alone,\" said {name}. \"Then we will do it together,\" said {friend}.",
            f"\"Let us try,\" said {friend}, and {name} was glad not to be alone."]),
    ]
    if long:
        parts += [
            rng.choice([
                "The first try went wrong, and they both fell into the mud.",
                "At first nothing worked, and the rain began to fall.",
                "On the first day they were too slow, and in the night the wind undid their work."]),
            rng.choice([
                f"{friend} wanted to go home, but {name} only laughed. \"Every piece we save can grow again,\" {he} said.",
                f"They sat down and shared some bread. \"Tomorrow we will be wiser,\" said {friend}.",
                f"\"What falls down can be built again,\" said {name}, and {friend} nodded slowly."]),
            rng.choice([
                "The next day more friends came, and each of them carried a part of the load.",
                "In the morning their neighbors came to help, and everybody took one small piece of the work."]),
        ]
    parts += [
        f"Together they {place['cure'][case]}",
        rng.choice(place["after"]),
    ]
    if long:
        parts += [
            rng.choice([
                f"That evening there was a feast, and {friend} told the story three times, and each time it was longer.",
                f"In the evening they all sat around a fire, and {name} fell asleep before the last song."]),
            rng.choice([
                f"Years later, when {name} was old, the little ones still asked {cast['him']} to tell how it had been.",
                f"And when the winter came, {name} and {friend} were never alone again."]),
        ]
    parts.append(rng.choice([
        f"From that day on {name} and {friend} were the best of friends.",
        f"And {name} learned that many small hands can do a great thing.",
        f"{name} slept well that night, and so did everybody else.",
        f"And if you go there today, you may still see {name} and {friend} {place['where']}."]))
    return " ".join(parts)


def counting(rng):
    first = rng.choice([1, 1, 1, rng.randint(2, 12)])
    last = min(20, first + rng.randint(3, 14))
    up, words = rng.random() < 0.75, rng.random() < 0.5
    say = (lambda n: ONES[n]) if words else str
    run = list(range(first, last + 1)) if up else list(range(last, first - 1, -1))
    if up and first == 1 and rng.random() < 0.6:
        ask = ["Count to {b}.", "Count up to {b}.", "Can you count to {b}?", "Please count to {b} for me.",
               "Can you count up to {b}?"]
    elif up:
        ask = ["Count from {a} to {b}.", "Count up from {a} to {b}.", "Can you count from {a} to {b}?",
               "List the numbers from {a} to {b}."]
    elif first == 1 and rng.random() < 0.6:
        ask = ["Count down from {b}.", "Count backwards from {b}."]
    else:
        ask = ["Count down from {b} to {a}.", "Count backwards from {b} to {a}."]
    question = rng.choice(ask).format(a=say(first), b=say(last))
    return question, f"From {say(run[0])} to {say(run[-1])}: {', '.join(say(n) for n in run)}."


def sums(rng):
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if rng.random() < 0.6:
        forms = ["What is {a} plus {b}?", "What is {a} + {b}?", "{a} + {b}", "How much is {a} plus {b}?",
                 "Add {a} and {b}.", "{a}+{b}=", "Calculate {a} + {b}.", "What's {a}+{b}?"]
        return rng.choice(forms).format(a=a, b=b), f"{a} plus {b} is {a + b}."
    a, b = max(a, b), min(a, b)
    forms = ["What is {a} minus {b}?", "What is {a} - {b}?", "{a} - {b}", "How much is {a} minus {b}?",
             "Calculate {a} - {b}."]
    return rng.choice(forms).format(a=a, b=b), f"{a} minus {b} is {a - b}."


def colour(rng):
    word = rng.choice(["color", "color", "colour"])
    if rng.random() < 0.3:
        one, two, mix = rng.choice(MIXES)
        if rng.random() < 0.5:
            one, two = two, one
        forms = [f"What do you get when you mix {one} and {two}?", f"Which {word} do {one} and {two} make?",
                 f"What {word} is {one} mixed with {two}?", f"Mix {one} and {two}."]
        return rng.choice(forms), f"{capital(one)} and {two} together make {mix}."
    thing, answer, why = rng.choice(COLOURS)
    verb = "are" if thing.endswith("s") and not thing.endswith("ss") else "is"
    forms = [f"What {word} {verb} {thing}?", f"Which {word} {verb} {thing}?", f"What is the {word} of {thing}?",
             f"Tell me the {word} of {thing}."]
    return rng.choice(forms), f"{capital(thing)} {verb} {answer}. {why}"


def calendar(rng):
    names, kind = rng.choice([(DAYS, "day"), (DAYS, "day"), (MONTHS, "month"), (SEASONS, "season")])
    if rng.random() < 0.25:
        return rng.choice([f"What are the {kind}s?", f"Name the {kind}s.", f"List all {kind}s.",
                           f"How many {kind}s are there?",
                           f"What are the {kind}s of the {'week' if kind == 'day' else 'year'}?"]), (
            f"There are {ONES[len(names)]} {kind}s: {', '.join(names[:-1])} and {names[-1]}.")
    at = rng.randrange(len(names))
    step, word = rng.choice([(1, "after"), (-1, "before")])
    forms = [f"What {kind} comes {word} {names[at]}?", f"Which {kind} is {word} {names[at]}?",
             f"What comes {word} {names[at]}?"]
    return rng.choice(forms), capital(f"{names[(at + step) % len(names)]} comes {word} {names[at]}.")


def opposite(rng):
    pair = list(rng.choice(OPPOSITES))
    rng.shuffle(pair)
    forms = ["What is the opposite of {w}?", "The opposite of {w}?", "What's the opposite of {w}?",
             "Tell me the opposite of {w}."]
    return rng.choice(forms).format(w=pair[0]), f"The opposite of {pair[0]} is {pair[1]}."


def listing(rng):
    kind, items = rng.choice(LISTS)
    count = rng.randint(2, 5)
    chosen = rng.sample(items, count)
    forms = ["Name {n} {k}.", "List {n} {k}.", "Tell me {n} {k}.", "Give me {n} {k}.", "Can you name {n} {k}?",
             "What are {n} {k}?", "Give me a list of {n} {k}."]
    answer = f"Here are {ONES[count]} {kind}: {', '.join(chosen[:-1])} and {chosen[-1]}."
    n = rng.choice([ONES[count], str(count)])
    return rng.choice(forms).format(n=n, k=kind), answer


def poem(rng):
    theme = rng.choice(list(POEMS))
    name = rng.choice([f"the {theme}", theme, f"a {theme}"]).replace("a autumn", "autumn").replace("a rain", "rain")
    forms = ["Write a poem about {t}.", "Write a short poem about {t}.", "A poem about {t}, please.",
             "Can you write a poem about {t}?", "Tell me a poem about {t}.", "Write me a little poem about {t}.",
             "Compose a poem about {t}.", "Make a rhyme about {t}.", "Write a haiku about {t}.",
             "Sing a song about {t}."]
    if rng.random() < 0.15:
        return rng.choice(["Write a poem.", "Tell me a poem.", "Can you write a poem?", "Write something nice.",
                           "Sing a song.", "Say something nice.", "A poem, please."]), "\n".join(POEMS[theme])
    return rng.choice(forms).format(t=name), "\n".join(POEMS[theme])


def joke(rng):
    return rng.choice(["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.",
                       "A joke, please.", "Can you tell me a joke?", "Tell me something funny.",
                       "Another joke."]), rng.choice(JOKES)


def repeat(rng):
    words = rng.sample(ANIMALS + [w for pair in OPPOSITES for w in pair] + ONES[1:13], rng.randint(1, 5))
    text = " ".join(words)
    forms = ["Repeat after me: {t}", "Repeat: {t}", "Say {t}.", "Please repeat: {t}", "Say this: {t}",
             "Repeat this: {t}", "Say \"{t}\"."]
    return rng.choice(forms).format(t=text), capital(text) + "."


def unknown(rng):
    """Things that the model never learned: it says so and what it does know."""
    thing, other = rng.sample(UNKNOWN, 2)
    question = rng.choice([
        f"What is {thing}?", f"Tell me about {thing}.", f"Explain {thing}.", f"What is the capital of {thing}?",
        f"Who invented {thing}?", f"How do I learn {thing}?", f"Write code for {thing}.",
        f"Who is {thing}?", f"Where is {thing}?", f"Translate {thing} into French.", f"When was {thing}?",
        f"Why is {thing} so important?", f"How does {thing} work?", f"Which is better, {thing} or {other}?",
        f"Write a function that sorts {thing}.", f"What is the price of {thing}?", f"Do you like {thing}?",
        f"What is the difference between {thing} and {other}?", f"Write an essay about {thing}.",
        f"How many people live in {thing}?", f"Summarize {thing}.", f"Give me a recipe for {thing}.",
        f"What happened in {thing}?", f"Should I buy {thing}?", f"Where can I find {thing}?"])
    lead = rng.choice(["I am only a small demo model, so I do not know that.",
                       "That is more than a small demo model knows.",
                       "I am sorry, I have not learned anything about that."])
    offer = rng.choice(["Ask me about ponds, weather, animals or planarians, or let me tell you a story.",
                        "But I can tell you a story, count to twenty or explain how a planarian regrows."])
    return question, f"{lead} {offer}"


KINDS = [(about_topic, 34), (tell_story, 23), (assistant_itself, 9), (greeting, 5), (counting, 7), (sums, 4),
         (colour, 3), (calendar, 2), (opposite, 3), (listing, 3), (poem, 4), (joke, 1.5), (repeat, 4),
         (unknown, 5)]


# Small helpers of language.

def as_typed(rng, question):
    """As people type: lower case, no full stop, with or without manners."""
    if rng.random() < 0.16:
        polite = rng.choice(["Please ", "Hey, ", "Hi! ", "Hello, ", "Hello! ", "Okay, ", "So, ", "Now "])
        question = polite + (question if polite.endswith("! ") else lower_first(question))
    elif rng.random() < 0.08 and question[-1] in ".?":
        question = question[:-1] + rng.choice([", please", " please"]) + question[-1]
    if rng.random() < 0.2:
        question = question.lower()
    if rng.random() < 0.25:
        question = question.rstrip(".?!") or question
    elif rng.random() < 0.05:
        question = question.rstrip(".?!") + "!"
    return question


def lower_first(text):
    keep = text.startswith(("I ", "Planaria", "I'm")) or text[:1].isdigit()
    return text if keep else text[0].lower() + text[1:]


def capital(text):
    return text[:1].upper() + text[1:]


def article(noun):
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def one_of(rng, part):
    return part if isinstance(part, str) else rng.choice(part)
