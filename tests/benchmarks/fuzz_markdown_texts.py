"""Markdown texts to fuzz with: plans that somebody could have written, changed here and there, and worse."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.benchmarks.fuzz_texts import BREAKS, fallen_apart, mutated, with_breaks

PIECES = (
    *(
        "|",
        "\\|",
        "||",
        "| ",
        "---",
        "|---|---|\n",
        "| Run | Batch Size |\n|---|---|\n",
        "| run1 | 8 |\n",
        "\\",
        "`",
        "``",
    ),
    *(
        "```\n",
        "~~~\n",
        "<!--",
        "-->",
        "\n-->\n",
        "<div>\n",
        "</div>\n",
        "<script>",
        "<?",
        "&nbsp;",
        "&#124;",
        "> ",
        ">\n",
    ),
    *(
        "# ",
        "## ",
        "## Packing Analysis\n",
        "## Configuration\n",
        "### x\n",
        "Packing Analysis\n---\n",
        "===\n",
        "---\n",
        "***\n",
    ),
    *(
        "- ",
        "* ",
        "+ ",
        "1. ",
        "- **Batch sizes**: run2: 8\n",
        "  - Packing density: 1\n",
        "- Dataset packing: False\n",
    ),
    *(
        "\n",
        "\n\n",
        "\r",
        "\r\n",
        "\t",
        "    ",
        "  ",
        "\x0b",
        "\x0c",
        "\x85",
        "\u2028",
        "\xa0",
        "\x00",
        "\ufeff",
        "é",
        "🙂",
        "\ud800",
    ),
    *("[x]: y\n", "[Packing]: <z> 'title\n", "**", "_", ":", "Run", "Batch Size", "run1", "  \n", "\\\n"),
)
BLOCKS = st.lists(
    st.sampled_from(
        [
            "# Plan\n", "## Packing Analysis\n", "## **Packing Analysis** (from prior runs)\n",
            "## Configuration\n",
            "## Configuration:\n", "### Notes\n", "## Other\n", "Packing Analysis\n---\n",
            "Prose with a | pipe.\n", "\n",
            "| Run | Batch Size | Note |\n|---|:-:|---|\n| run2 | 8 | a \\| b |\n",
            "| Model | batch size |\n|-------|--|\n| 1B | 4 | 5 |\n| 3B |\n", "| Run |\n|---|\n",
            "Run | x\n-|-\nrun1 | y\n",
            "| Epoch | Loss |\n|--|--|\n| 1 | 2 |\n",
            "```\n## Packing Analysis\n| Run | Batch Size |\n|---|---|\n```\n",
            "    ## Packing Analysis\n    | Run |\n    |---|\n", "<!--\n## Configuration\n-->\n", "<!-- open\n",
            "> | Run |\n> |---|\n", "- **Batch sizes**: run2: 8\n",
            "- **Dataset packing:** False\n  lazy\n  - Packing density: 1\n",
            "* other: x\n\n  more\n", "1. - a: b\n", "- [ ] Batch sizes: run1: 4, run2: `8`\n", "[ref]: /x\n",
            "- Batch sizes\n", "-\n", "- a\n\n      code\n", "<details>\n\n",
            "  | Run | Batch Size |\n  |---|---|\n  | a | 1 |\n",
        ]
    ),
    max_size=12,
).map("".join)  # fmt: skip
PLANS = st.builds(
    lambda text, line_break, final: with_breaks(text if final else text.rstrip("\n"), line_break),
    st.one_of(
        BLOCKS,
        st.builds("## Packing Analysis\n\n{}".format, BLOCKS),
        st.builds("## Configuration\n{}".format, BLOCKS),
    ),
    st.sampled_from(["\n", "\n", "\r\n", "\r"]),
    st.booleans(),
)
TEXTS = st.one_of(
    PLANS,
    mutated(PLANS, PIECES),
    mutated(st.builds("# Plan\n\n## Packing Analysis\n\n{}".format, BLOCKS), PIECES),
    st.lists(st.sampled_from(PIECES), max_size=16).map("".join),
    st.builds("## Packing Analysis\n{}".format, st.text(max_size=40)),
    st.binary(max_size=60).map(fallen_apart),
)
NAMES = st.one_of(
    st.just("run1"),
    st.sampled_from(
        [
            "a|b",
            "`run`",
            "$(touch x)",
            "a\nb",
            "<!-- x",
            "**run2**",
            "\\",
            "\\|",
            "- x",
            "a, b: c",
            "x" + BREAKS[4],
        ]
    ),
    st.text(min_size=1, max_size=8),
)
ROWS = st.sampled_from(
    [
        {"Batch Size": "24"},
        {
            "Batch Size": "24",
            "Packed": "True",
            "Packing Density": "61.3 ex/seq",
            "Memory Usage": "55.1 GiB (68.9 %)",
        },
        {"Batch Size": "a|b", "Note": "<!-- `x` -->"},
    ]
)
