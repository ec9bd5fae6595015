"""Conversations in which the demo model calls tools, and the thoughts that it has before it answers.

It learns two tools: one tells the weather in a place, the other adds two numbers. Both go by many names, so that
the model reads the name and the parameters in the list that it is given rather than knowing them by heart.
"""

import json
import random

WEATHER_NAMES = ["get_weather"] * 4 + ["weather", "get_current_weather", "current_weather", "lookup_weather", "forecast"]
PLACE_PARAMETERS = ["city"] * 4 + ["location", "place", "town"]
SUM_NAMES = ["add"] * 4 + ["add_numbers", "sum", "plus", "calculate_sum"]
SUM_PARAMETERS = [("a", "b")] * 4 + [("x", "y"), ("first", "second"), ("left", "right")]
OTHER_TOOLS = ["search(query)", "send_mail(to, text)", "read_file(path)", "open_door()", "play_music(title)"]

CITIES = ("Paris Rome London Berlin Madrid Vienna Oslo Bern Lisbon Athens Dublin Prague Warsaw Budapest Helsinki "
          "Stockholm Copenhagen Brussels Amsterdam Hamburg Munich Cologne Basel Geneva Zurich Milan Naples Venice "
          "Florence Lyon Nice Bordeaux Seville Porto Kyiv Istanbul Cairo Lagos Nairobi Tokyo Kyoto Osaka Seoul "
          "Beijing Delhi Mumbai Sydney Boston Chicago Denver Dallas Houston Seattle Toronto Montreal Lima Bogota "
          "Quito Santiago").split()
SYLLABLES = "ba be bo da do fa fi ga go ha ka ko la le li lo ma mi mo na ne no pa ra ri ro sa se si ta to va vi wa zu".split()
SKIES = ["sunny", "rain", "cloudy", "snow", "fog", "windy", "clear", "light rain", "thunder", "hail"]

# What the model thinks before it answers, by the kind of the question.
THOUGHTS = {
    "about_topic": ["They want to know about something that I have learned. I say what I know."],
    "tell_story": ["They want a story. It needs somebody, a place, trouble and a friend."],
    "assistant_itself": ["They ask about me. I say what I am."],
    "greeting": ["They are friendly, so I am too."],
    "counting": ["I count one by one and stop at the last number."],
    "sums": ["These are small numbers. I can do that myself."],
    "colour": ["This is about a color. I know that."],
    "calendar": ["I go through the names in their order."],
    "opposite": ["I need the word that means the contrary."],
    "listing": ["They want some names. I count them while I say them."],
    "poem": ["A poem has short lines. I write some."],
    "joke": ["They want to laugh. I know a joke."],
    "repeat": ["I say the same words again."],
    "unknown": ["I have not learned that. I say so, and what I can do."],
}


def thought(rng, kind):
    """What is thought before a question of this kind is answered, as it is written."""
    return f"<think>{rng.choice(THOUGHTS[kind])}</think>"


def drill(rng):
    """Words without sense, to be said again and again: what is written once is to be found and copied."""
    words = ["".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 3))) if rng.random() < 0.6
             else str(rng.randrange(10 ** rng.randint(1, 4))) for _ in range(rng.randint(2, 8))]
    return " ".join(words) + " "


def with_tools(rng, small_talk):
    """A conversation under a list of tools.

    `small_talk(rng)` gives a question that needs no tool, and its answer.
    """
    weather = Weather(rng.choice(WEATHER_NAMES), rng.choice(PLACE_PARAMETERS))
    adder = Adder(rng.choice(SUM_NAMES), *rng.choice(SUM_PARAMETERS))
    tools = rng.choices([[weather, adder], [weather], [adder]], [60, 20, 20])[0]
    listed = [tool.signature() for tool in tools]
    if rng.random() < 0.2:
        listed.append(rng.choice(OTHER_TOOLS))
    rng.shuffle(listed)
    turns = [("tools", "\n".join(listed))]
    for _ in range(rng.choices([1, 2, 3], [70, 22, 8])[0]):
        thinks = rng.random() < 0.35
        if rng.random() < 0.2:
            question, answer = small_talk(rng)
            turns += [("user", question), ("assistant", answer)]
        else:
            turns += rng.choice(tools).turn(rng, thinks)
    return turns


class Tool:
    """A tool under one of its names. `turn` is a question for it, with what follows."""

    def __init__(self, name, *parameters):
        self.name, self.parameters = name, parameters

    def signature(self):
        return f"{self.name}({', '.join(self.parameters)})"

    def call(self, *values):
        """A call as the model writes it, and as its chat template writes it again."""
        arguments = dict(zip(self.parameters, values))
        return f'<tool_call>{{"name": {json.dumps(self.name)}, "arguments": {json.dumps(arguments)}}}</tool_call>'


class Weather(Tool):
    """The tool that knows the weather."""

    def turn(self, rng, thinks):
        cities = [city(rng) for _ in range(2 if rng.random() < 0.15 else 1)]
        named = " and ".join(cities)
        question = rng.choice([
            "What is the weather in {c}?", "What is the weather in {c}?", "How is the weather in {c}?",
            "What's the weather like in {c}?", "Is it raining in {c}?", "Do I need an umbrella in {c}?",
            "How warm is it in {c}?", "Tell me the weather in {c}.", "What is the weather in {c} today?",
            "What is the weather in {c} now?", "Is it cold in {c}?", "The weather in {c}, please.",
            "Weather in {c}?", "Can you tell me the weather in {c}?", "What will the weather be in {c}?",
            "Will it snow in {c}?", "Is it sunny in {c}?", "Look up the weather in {c}."]).format(c=named)
        skies = [sky(rng) for _ in cities]
        calls = "".join(self.call(city) for city in cities)
        answer = " ".join(f"In {city}: {said}." for city, (_, said) in zip(cities, skies))
        first = f"They ask for the weather in {named}. The tool {self.name} knows it."
        return loop(rng, thinks, typed(rng, question), first, calls, [result for result, _ in skies], answer)


class Adder(Tool):
    """The tool that adds."""

    def turn(self, rng, thinks):
        a, b = (rng.randrange(10 ** rng.choice([1, 2, 2, 3, 3, 4])) for _ in range(2))
        question = rng.choice([
            "What is {a} plus {b}?", "What is {a} plus {b}?", "What is {a} + {b}?", "{a} + {b}", "Add {a} and {b}.",
            "How much is {a} plus {b}?", "What is the sum of {a} and {b}?", "Calculate {a} + {b}.",
            "What's {a}+{b}?", "{a}+{b}=", "Can you add {a} and {b}?", "Please add {a} to {b}."])
        question = question.format(a=a, b=b)
        calls = self.call(a, b)
        result = rng.choice([str(a + b), str(a + b), json.dumps({"result": a + b}), json.dumps({"sum": a + b})])
        first = f"{a} and {b} are to be added. The tool {self.name} can do that."
        return loop(rng, thinks, typed(rng, question), first, calls, [result], f"{a} plus {b} is {a + b}.")


def loop(rng, thinks, question, first, calls, results, answer):
    """A question, the calls, what the tools say, and the answer. Clients often leave former thoughts out."""
    first = f"<think>{first}</think>" if thinks and rng.random() < 0.6 else ""
    second = "<think>The tool has answered. I pass it on.</think>" if thinks else ""
    return ([("user", question), ("assistant", first + calls)]
            + [("tool", result) for result in results] + [("assistant", second + answer)])


def city(rng):
    """A place; often one that does not exist, so that it has to be read in the question."""
    if rng.random() < 0.5:
        return rng.choice(CITIES)
    name = "".join(rng.choice(SYLLABLES) for _ in range(rng.choice([2, 2, 3]))).capitalize()
    return name + rng.choice(["", "", "", "n", "burg", "ville", "ton"])


def sky(rng):
    """What the tool says of the weather, and how the model says it."""
    kind, degrees = rng.choice(SKIES), rng.randint(-9, 39)
    said = f"{kind}, {degrees} degrees"
    if rng.random() < 0.35:
        keys = rng.choice([("temperature", "sky"), ("temperature", "condition"), ("degrees", "weather")])
        pairs = list(zip(keys, (degrees, kind)))
        rng.shuffle(pairs)
        return json.dumps(dict(pairs)), said
    text = rng.choice([said, said, f"{degrees} degrees and {kind}", f"{kind} and {degrees} C", kind,
                       f"{degrees} degrees", f"{degrees} C, {kind}"])
    return text, text


def typed(rng, question):
    """As people type, but for capital letters, which are copied into calls."""
    if rng.random() < 0.1:
        question = rng.choice(["Hello! ", "Hi! ", "Please: ", "Hey, "]) + question
    if rng.random() < 0.2:
        question = question.rstrip("?.") or question
    return question
