"""Says which lines of `schemas.rs` have an answer that is not of its schema: validate.py FILE, with the package jsonschema."""

import collections
import json
import sys

import jsonschema

VALIDATORS = {
    "draft2020-12": jsonschema.Draft202012Validator,
    "draft7": jsonschema.Draft7Validator,
}


def problem(line):
    """In words; None if the answer is of its schema."""
    try:
        answer = json.loads(line["answer"])
    except ValueError as error:
        return f"no JSON: {error}"
    validator = VALIDATORS[line["draft"]](line["schema"])
    try:
        error = next(validator.iter_errors(answer), None)
    except Exception as error:  # The validator lacks something: nothing is said of the answer.
        return f"not judged: {error!r}"
    return None if error is None else error.message


counts = collections.Counter()
with open(sys.argv[1]) as lines:
    for line in map(json.loads, lines):
        words = problem(line)
        kind = "valid" if words is None else "unjudged" if words.startswith("not judged") else "wrong"
        counts[line["draft"], kind] += 1
        if words is not None:
            print(f"{line['draft']}, {line['place']}: {line['answer']}: {words}"[:500])
for (draft, kind), count in sorted(counts.items()):
    print(f"{draft}: {count} answers {kind}")
sys.exit(1 if any(kind == "wrong" for _, kind in counts) else 0)
