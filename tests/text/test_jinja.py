"""Templates are untrusted code: what they cost and reach is limited."""

import os
import resource
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemwright.errors import GemwrightError
from gemwright.text.jinja import MAX_SOURCE, JinjaTemplate

COSTLY = {
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "its own block": "{% block a %}{{ self.a() }}{% endblock %}",
    "a product": "{{ 'x' * 10**9 }}",
    "a product of a list": "{{ [1] * 10**9 }}",
    "a range": "{{ range(10**9) | list }}",
    "a power": "{{ 2 ** (10**9) }}",
    "sums": "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "concatenations": "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "nested lists": "{% set ns = namespace(s=1) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}",
    "a block": "{% set x %}{% for i in range(100000) %}" + "y" * 30000 + "{% endfor %}{% endset %}",
    "output": "{% for i in range(100000) %}" + "y" * 30000 + "{% endfor %}",
    "padding": "{{ 'x'.center(10**9) }}",
    "a width of %": "{{ '%1000000000d' % 1 }}",
    "a width argument of %": "{{ '%*d' % (10**9, 1) }}",
    "a width of format": "{{ '{:1000000000}'.format(1) }}",
    "a width argument of format": "{{ '{:{}}'.format(1, 10**9) }}",
    "the filter format": "{{ '%1000000000d' | format(1) }}",
    "a replacement": "{{ ('a' * 4000000).replace('a', 'b' * 100) }}",
    "the filter replace": "{{ ('a' * 4000000) | replace('a', 'b' * 100) }}",
    "a joined generator": "{{ ''.join(range(100000) | map('string') | map('replace', '1', 'x' * 1000)) }}",
    "the filter join": "{{ range(100000) | join('x' * 1000000) }}",
    "indentation": "{{ ('a\\n' * 1000000) | indent(1000) }}",
    "JSON": "{{ [1] | tojson(indent=10**9) }}",
    "rounding": "{{ 1.5 | round(10**9) }}",
    "bytes": "{{ (5).to_bytes(10**9, 'big') }}",
    "tabs": "{{ ('\\t' * 100000).expandtabs(10**6) }}",
    "a search": "{{ ('a' * 4000000).rfind('b' + 'a' * 2000000) }}",
    "trimming": "{{ ('a' * 2000000) | trim('b' * 1000000 ~ 'a') }}",
    "a sum of lists": "{{ range(100000) | map('list') | sum(start=[]) }}",
    "random text": "{{ lipsum(n=10**9) }}",
    "a batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "many brackets": "{{ " + "(" * 10000 + "1" + ")" * 10000 + " }}",
    "many blocks": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "many lists": "{{ [" + "[x]," * 9000 + "] }}",
    "a long number": "{{ " + "9" * 30000 + " }}",
    "a long template": "x" * (MAX_SOURCE + 1),
    "many loops": "{% for x in [1] %}" * 30 + "{% endfor %}" * 30,
    "a date": "{{ strftime_now('%c' * 100) }}",
}
FORBIDDEN = [
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__.os }}",
    "{% set ns = namespace(__class__=1) %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ cycler.__init__.__globals__ }}",
]


def render(source: str) -> str:
    return JinjaTemplate(source).render({"messages": [{"role": "user", "content": "hi"}], "x": "x"})


@pytest.mark.parametrize("source", COSTLY.values(), ids=COSTLY)
def test_a_costly_template_is_stopped(source: str) -> None:
    start, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GemwrightError, match=r"^The chat template (fails|is not valid|has more than)") as error:
        render(source)
    assert "\n" not in str(error.value)
    assert time.thread_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


@pytest.mark.parametrize("source", FORBIDDEN)
def test_a_template_reaches_nothing_but_its_variables(source: str) -> None:
    try:
        text = render(source)
    except GemwrightError:
        return
    assert "class" not in text
    assert "root" not in text


def test_limits_are_those_of_each_rendering_and_thread() -> None:
    template = JinjaTemplate("{% for i in range(20000) %}{{ x }}{% endfor %}")
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(template.render({"x": "ab"})))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [40000] * 4


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 1 + 1 }} {{ 'a' ~ 2 ~ none }} {{ 2 ** 3 }} {{ 7 % 4 }} {{ 'ab' * 2 }}", "2 a2None 8 3 abab"),
        ("{% for a in range(3) if a %}{{ a }}{{ loop.last }}{{ loop.length }}{% endfor %}", "1False22True2"),
        ("{% for k, v in {'a': 1}.items() %}{{ k, v }}{% else %}-{% endfor %}", "('a', 1)"),
        ("{% generation %}a{% endgeneration %}{% for i in [1, 2] %}{{ i }}{% break %}{% endfor %}", "a1"),
        ("{{ [1, 'é'] | tojson }}{{ {'a': '<'} | tojson(indent=1) }}", '[1, "é"]{\n "a": "<"\n}'),
        (
            "{{ 'a b'.split() | join('-') }}{{ '-'.join(['a', 'b']) }}{{ '%03d' % 7 }}{{ '{:>3}'.format(1) }}",
            "a-ba-b007  1",
        ),
        ("{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call m(1) %}c{% endcall %}", "12c"),
        ("{% for x in [[1], [2]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "12"),
        ("{% filter upper %}{{ x }}{% endfilter %}{% set y %}{{ x }}{% endset %}{{ y }}", "Xx"),
        ("{{ messages[0:1] | length }}{{ messages[::-1][0].role }}{{ dict(a=1).a }}{{ 'x' | center }}", None),
    ],
)
def test_output_is_that_of_jinja(source: str, text: str | None) -> None:
    if text is None:
        with pytest.raises(GemwrightError, match="No filter named 'center'"):
            render(source)
    else:
        assert render(source) == text


_PIECES = (
    "{{", "}}", "{%", "%}", "|", "(", ")", "[", "]", "~", "+", "*", "**", ".", ",", "-", "{#", "#}", "x", "'a'",
    "upper", "9", "range(", "in", "namespace", "for", "messages", "endfor", "if", "endif", "set", "y", "=",
    "macro", "f()", "endmacro",
)  # fmt: skip


@settings(deadline=None, max_examples=int(os.environ.get("FUZZ", "150")))
@given(st.lists(st.sampled_from(_PIECES), max_size=25).map(" ".join))
def test_any_template_renders_or_is_one_sentence(source: str) -> None:
    with suppress(GemwrightError):
        assert isinstance(render(source), str)
