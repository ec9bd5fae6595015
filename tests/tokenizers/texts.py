"""Texts: of which the vocabularies are made, and which are cut by them."""

import random

PROSE = """
A cluster is a set of machines that answer together. Each of them holds some layers of a model, and no one of them holds
all. When a machine is lost, the others go on from the tokens that are known: what was computed is computed again, and
the reader of the answer notices nothing but a short pause. It's simple to say, and it wasn't simple to build; we'll see
whether they've got it right. Numbers such as 3, 14, 159, 2653 and 58979 are cut into groups of three digits, and words
like HTTPServer, camelCase and McDonald's are cut where they should be. Tokens are not words, tokens are parts of words.
Zürich, naïve, café, señor, Straße, œuvre, Ærø, žluťoučký kůň. Что такое токен? Это часть слова, а слово состоит из частей.
Η λέξη και το σύμβολο. 日本語のテキストも、ひらがなとカタカナと漢字からできています。한국어 문장도 있습니다.
一个集群是一组共同回答问题的机器。每台机器保存模型的几层，没有一台机器保存全部。当一台机器丢失时，其他机器从已知的词元继续。
读者只会注意到短暂的停顿。模型由许多层组成，机器由许多部分组成，词元是文字的一部分。我们会看到机器是否正确。
def answer(question: str, tokens: list[int]) -> str:
    for index, token in enumerate(tokens):
        if token == 0 and index > 0:
            return "the end"    # nothing follows
        tokens[index] += 1
\t\treturn question\n\t\t\t# done\n
fn main() { let numbers = vec![1, 2, 3]; println!("{:?}", numbers); }
====== ------ ...... ******  {}[]()<>!?;:,.
            twelve spaces, and        eight, and    four, and  two.
🦠🦀👩‍👩‍👧 and a flag 🇨🇭, and 😀😀😀.
"""

TEXTS = [
    "",
    " ",
    "  ",
    "a",
    " a",
    "  a  b  ",
    "\n",
    "\n\n\n a\n",
    "\r\n\r\na\r\n",
    "\t",
    "\t\t\tx\t\ty\t",
    " \t \n \t ",
    "trailing   ",
    "   leading",
    "The cluster answers.",
    "the cluster's machines, they've answered; it'S, IT'LL, don't, 'tis, x'd",
    "HTTPServer camelCase McDonald ABCdef ABC DEF aBC",
    "words,with.no;blanks:between!them?",
    "0 1 12 123 1234 12345 1234567 3.14159 1,000,000 ½ ⅷ ٣٤٥ 一二三",
    "集群是一组机器。",
    "一个集群 answers 机器of模型3层，没有mixed文字。",
    "〇々〆ヶ漢字とかな、カタカナ",
    "한국어 문장 테스트",
    "Что такое токен?",
    "café cafe\u0301 naı̈ve Z\u030aürich e\u0301\u0301\u0301 \u0301 \u0301a",
    "🦠 🦀👩‍👩‍👧🇨🇭 😀a😀 👍🏽 ❤️",
    "𝒳𠀀𠀁 \U0002ebf0 𐍈 ꙮ",
    "def f(x):\n    return x  # two\n\n\nclass A:\n\tpass\n",
    "if (a<=b&&c!=d) { e[0]->f(); } // === --> ??",
    "ſ 'ſ it'ſ K Å ﬁ ﬂ ① ② ㍿ ＡＢＣ ａｂｃ １２３ ﾊﾟ",
    "zero\u200bwidth \u200d \ufeff nbsp\u00a0here \u3000 wide \u2028 line \u2029 \u0085 next",
    "\u0000\u0001\u007f\u0080 control",
    "\ufffd replacement",
    "▁ ▁▁ a▁b ▁a",
    "▁",
    "▁▁▁",
    "<s> </s> <unk> <0x41> <pad>",
    "<s>hello</s>",
    "a <s> b</s> c",
    "<|im_end|><|im_user|>user<|im_middle|>Hi<|im_end|>",
    "[BOS]hello [EOS] [EOT]",
    "<|reserved_token_1000|> <|tool_call_begin|>x",
    "<think>why?</think>because",
    "aaaa aaa aa aaaaaaaaaaaaaaaaa",
    "abababababab bababa",
    "=" * 7 + "-" * 13 + "." * 5 + "*" * 31,
    " " * 5 + "x" + " " * 17 + "y" + " " * 64,
    "\n" * 9 + "x",
    "zqxjkv zqxjkvs Zqxjkv zqxjk",
    "a" * 300,
    "机器" * 40,
    "the machines " * 12,
    "﷽ ௵ ⁂ ‱",
    "مرحبا بالعالم שלום हिन्दी ภาษาไทย",
]

ALPHABET = list("aaaabcdeehnorst  ''   .,\n\t=-0123AB") + ["the", "ing", " and", "机", "器", "一个", "é", "e\u0301", "ß", "🦀",
                                                          "▁", "  ", "    ", "я", "か", "한", "\u3000", "ﬁ", "\u200b"]


def drawn(count):
    """Texts at random, always the same."""
    generator = random.Random(20)
    return ["".join(generator.choices(ALPHABET, k=generator.randint(1, 40))) for _ in range(count)]
