"""The locked-down template language: what it says, what it refuses, and that nothing gets large or long."""

import pytest
from django.template import defaultfilters, defaulttags, loader_tags

from tasks.template_language import STEPS, Allowance, TemplateError, compiled, register, rendered


def said(source, context=None, *, html=False, steps=STEPS):
    return rendered(compiled(source), context or {}, Allowance(steps), is_html=html)


@pytest.mark.parametrize(
    ("source", "context", "expected"),
    [
        ("Hi {{ n }}", {"n": "<Ada>"}, "Hi <Ada>"),
        ("{{ a.b.0.c }}", {"a": {"b": [{"c": 5}]}}, "5"),
        ("{{ missing }}{{ a.missing }}{{ l.9 }}", {"a": {}, "l": []}, ""),
        ("{{ missing|default:'you' }}", {}, "you"),
        ("{% for k, v in d.items %}{{ k }}={{ v }};{% endfor %}", {"d": {"a": 1, "b": 2}}, "a=1;b=2;"),
        ("{{ d.items }}", {"d": {"items": "own"}}, "own"),
        ("{% for x in l %}{{ forloop.counter }}{{ x }}{% empty %}none{% endfor %}", {"l": ["a"]}, "1a"),
        ("{% for x in l %}{% empty %}none{% endfor %}", {}, "none"),
        ("{% if n > 1 and s == 'x' %}a{% elif n %}b{% else %}c{% endif %}", {"n": 2, "s": "x"}, "a"),
        ("{% with a=n|upper %}{{ a }}{% endwith %}", {"n": "x"}, "X"),
        ("{{ 3.14159|floatformat:2 }}", {}, "3.14"),
        ("{{ d|date:'j.n.Y H:i' }}", {"d": "2030-01-31T09:30:00Z"}, "31.1.2030 09:30"),
        ("{{ d|date }}", {"d": "no date"}, ""),
        ("{{ l|join:', ' }}", {"l": ["a", 1]}, "a, 1"),
        ("{% verbatim %}{{ n }}{% endverbatim %}{# no #}{% comment %}no{% endcomment %}", {}, "{{ n }}"),
    ],
)
def test_it_says_what_django_would(source, context, expected):
    assert said(source, context) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ v }}", "&lt;b&gt;&amp;&#x27;"),
        ("{{ v|upper }}", "&lt;B&gt;&amp;&#x27;"),
        ("{{ l|join:v }}", "a&lt;b&gt;&amp;&#x27;b"),
        ("{{ l.2|force_escape|cut:'amp' }}{{ v|linebreaksbr }}", "&lt;i&gt;&lt;b&gt;&amp;&#x27;"),
        ("{{ l|join:'<br>' }}", "a<br>b"),
        ("{{ missing|default:v }}", "&lt;b&gt;&amp;&#x27;"),
        ("{{ l.2|linebreaks }}", "<p>&lt;i&gt;</p>"),
        ("{% for x in o.items %}{{ x.0 }}{% endfor %}", "&lt;key&gt;"),
        ("{% with w=v %}{{ w|first }}{% endwith %}", "&lt;"),
    ],
)
def test_what_comes_from_outside_is_escaped_in_html(source, expected):
    context = {"v": "<b>&'", "l": ["a", "b"], "o": {"<key>": 1}}
    context["l"] = ["a", "b"] if "join" in source else ["a", "b", "<i>"]
    assert said(source, context, html=True) == expected


ALLOWED_TAGS = {"if", "for", "with", "comment", "verbatim"}
EVERY_TAG = sorted({*defaulttags.register.tags, *loader_tags.register.tags, "ssi", "static"} - ALLOWED_TAGS)


@pytest.mark.parametrize("tag", EVERY_TAG)
def test_no_other_tag_is_known(tag):
    with pytest.raises(TemplateError, match=f"^line 2: Invalid block tag: '{tag}'"):
        compiled(f"x\n{{% {tag} 'x' %}}")


def test_no_filter_that_grows_reads_or_marks_as_safe_is_known():
    harmful = {"safe", "safeseq", "ljust", "rjust", "center", "stringformat", "urlize", "urlizetrunc", "add"}
    harmful |= {
        "pprint",
        "make_list",
        "dictsort",
        "striptags",
        "wordwrap",
        "unordered_list",
        "json_script",
        "random",
    }
    assert harmful <= set(defaultfilters.register.filters)
    for name in harmful:
        with pytest.raises(TemplateError, match=f"Invalid filter: '{name}'"):
            compiled(f"{{{{ x|{name} }}}}")
    assert set(register.tags) == ALLOWED_TAGS


@pytest.mark.parametrize(
    "source",
    [
        *["s.upper", "s.format", "d.keys", "d.clear", "l.append", "n.real", "s.0", "forloop.items"],
        *["render_context", "template", "allowance", "dicts", "settings.SECRET_KEY"],
    ],
)
def test_there_is_no_way_to_attributes_and_calls(source):
    context = {"s": "", "d": {"a": 1}, "l": [1], "n": 5}
    assert said(f"{{{{ {source} }}}}", context) == ""
    assert context == {"s": "", "d": {"a": 1}, "l": [1], "n": 5}


@pytest.mark.parametrize(
    "source", ["{{ _private }}", "{{ s.__class__ }}", "{{ s.__class__.__mro__ }}", "{{ d._x }}"]
)
def test_private_names_do_not_compile(source):
    with pytest.raises(TemplateError, match="underscore"):
        compiled(source)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("a\n\n{% for x in l %}", "line 3: Unclosed tag: 'for'"),
        ("a\n{{ }}", "line 2: Empty variable tag"),
        ("{{ x|nothing }}", "line 1: Invalid filter: 'nothing'"),
        ("\n{{ x y }}", "line 2: Could not parse"),
        ("{% if x %}" * 900 + "{% endif %}" * 900, "too deeply"),
        ("{{ x }}" * 2001, "more than 2,000"),
        (
            "\n{% if " + "and ".join(["x "] * 500) + "%}{% endif %}",
            "line 2: A tag or variable has more than 1,000",
        ),
        *[(f"a\n{opening * 50_000}", f"line 2: {opening} is left open") for opening in ("{{", "{%", "{#")],
        ("{{ x" + " " * 90_000 + "y }}", "line 1: A tag or variable has more than 1,000"),
        ('{{ "' + '\\"' * 49_000 + " }}", "line 1: A tag or variable has more than 1,000"),
    ],
)
def test_what_does_not_compile_is_named_with_its_line(source, complaint):
    with pytest.raises(TemplateError, match=complaint):
        said(source, {"x": 1})


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("\n{{ d }}", "line 2: d is a list or an object"),
        ("\n{{ l|upper }}", "line 2: upper is not for lists"),
        ("\n{% for x in 5 %}{% endfor %}", "line 2: 5 is not a list"),
        ("\n{% for a, b in l %}{% endfor %}", "line 2: A value does not fit: Need 2 values"),
        ("\n{{ 5|divisibleby:0 }}", "line 2: A value does not fit"),
        ("\n{{ 5|floatformat:'1000000' }}", "line 2: A value does not fit: floatformat"),
        ("\n{{ x|default:a.b.c }}", "line 2: There is no 'a'"),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(source, complaint):
    with pytest.raises(TemplateError, match=complaint):
        said(source, {"d": {}, "l": [1]})


NUMBERS, LONG = list(range(10_000)), "x" * 60_000


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in l %}{% for b in l %}{% for c in l %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
        "{% for a in l %}{{ s }}{% endfor %}",
        "{% for a in l %}" + "y" * 90_000 + "{% endfor %}",
        "{% for a in l %}" + "a{##}" * 900 + "{% endfor %}",
        "{% for a in l %}{% if a in l and l == l and s == s %}{% endif %}{% endfor %}",
        "{% for a in l %}{% if " + "and ".join(["a "] * 80) + "%}{% endif %}{% endfor %}",
        "{% for a in l %}{{ s" + "|force_escape" * 70 + " }}{% endfor %}",
        "{% for a in l %}{{ number }}{{ number }}{{ number }}{% endfor %}",
        "{% for a in l %}{{ d.items.0.0 }}{% endfor %}",
        "{% for a in l %}{% with b=l %}{% if b %}{% endif %}{% endwith %}{% endfor %}",
        "{% for a in l %}{% for b in d.items %}{% endfor %}{% endfor %}",
    ],
)
def test_what_would_take_long_or_grow_large_is_ended(source):
    with pytest.raises(TemplateError, match="takes too long"):
        said(
            source,
            {
                "l": NUMBERS,
                "s": LONG,
                "d": {str(number): number for number in range(500)},
                "number": 10**4_000,
            },
        )


def test_a_long_invoice_is_no_bomb():
    rows = [{"name": f"Book {number}", "price": 9.5} for number in range(1_000)]
    source = "{% for row in rows %}<tr><td>{{ row.name }}</td><td>{{ row.price|floatformat:2 }}</td></tr>{% endfor %}"
    assert said(source, {"rows": rows}, html=True).count("<tr>") == 1_000


def test_the_same_template_and_context_take_the_same_steps():
    left = []
    for _ in range(2):
        allowance = Allowance()
        rendered(
            compiled("{% for a in l %}{{ a|upper }}{% endfor %}"), {"l": ["x"] * 99}, allowance, is_html=True
        )
        left.append(allowance.left)
    assert left[0] == left[1] < STEPS - 99


SECRETS = ["SECRET", "class", "object at", "function", "method", "<module", "DATABASE"]
#: From the corpora that testers of template injection use: nothing runs, nothing is read, nothing is unescaped.
INJECTIONS = [
    "{{ 7*7 }}",
    "{{ ''.__class__.__mro__.1.__subclasses__ }}",
    "{{ settings.SECRET_KEY }}{{ settings.DATABASES.default }}",
    "{{ request.user.password }}{{ request.META }}{{ user.password }}",
    "{{ request.session.items }}{{ csrf_token }}{{ block.super }}{{ perms }}{{ messages.storages.0 }}",
    "{{ n.real }}{{ n.to_bytes }}{{ s.format_map }}{{ s.encode }}{{ l.pop }}{{ d.popitem }}{{ d.setdefault }}",
    "{{ forloop.parentloop }}{{ self }}{{ context }}{{ dicts }}{{ template.engine }}{{ render_context }}",
    "{{ True.real }}{{ None.x }}{{ l.-1 }}{{ l.1e9 }}{{ l.0x0 }}",
    "{{ lipsum }}{{ cycler }}{{ config.items }}{{ range }}{{ joiner }}{{ namespace }}",
    "${7*7}#{7*7}<%= 7*7 %>${{7*7}}@(7*7)",
    "{% load log %}{% get_admin_log 10 as log %}{{ log }}",
    "{% include '/etc/passwd' %}",
    "{% include request.GET.x %}",
    "{% extends 'admin/base.html' %}",
    "{% extends d %}",
    "{% ssi '/etc/passwd' %}",
    "{% debug %}",
    "{% csrf_token %}",
    "{% url 'admin:index' %}",
    "{% static 'x' %}",
    "{% autoescape off %}{{ s }}{% endautoescape %}",
    "{% filter safe %}{{ s }}{% endfilter %}",
    "{% firstof s %}",
    "{% cycle 'a' 'b' as x %}",
    "{% regroup l by x as y %}",
    "{% now 'Y' %}",
    "{% lorem 100000 p %}",
    "{% widthratio 1 1 100 %}",
    "{% spaceless %} {% endspaceless %}",
    "{% templatetag openblock %}",
    "{% resetcycle %}",
    "{% querystring %}",
    "{% ifchanged s %}{% endifchanged %}",
    "{% block x %}{% endblock %}",
    "{% trans 'x' %}{% blocktranslate %}x{% endblocktranslate %}",
    "{% language 'de' %}{% endlanguage %}",
    "{% cache 500 x %}{% endcache %}",
    "{% for x in s.__class__ %}{% endfor %}",
    "{% with a=s.__init__ %}{{ a }}{% endwith %}",
    "{% if s.__class__ %}x{% endif %}",
    "{{ s|safe }}",
    "{{ l|safeseq|join:'' }}",
    "{{ s|striptags }}",
    "{{ s|pprint }}",
    "{{ l|random }}",
    "{{ s|stringformat:'1000000000d' }}",
    "{{ s|ljust:1000000000 }}",
    "{{ s|center:1000000000 }}",
    "{{ s|add:s }}",
    "{{ s|make_list }}",
    "{{ l|dictsort:'__class__' }}",
    "{{ l|unordered_list }}",
    "{{ s|json_script:'x' }}",
    "{{ s|attr:'__class__' }}",
    "{{ s|get_digit:1 }}",
    "{{ s|phone2numeric }}",
    "{{ 5|filesizeformat }}",
    "{{ s|iriencode }}",
    "{{ s|urlize }}",
    "{{ s|truncatechars_html:5 }}",
    "{{ s|wordwrap:1 }}",
    "{{ s|linenumbers }}",
]


@pytest.mark.parametrize("source", INJECTIONS)
def test_an_injection_is_refused_or_says_nothing(source, settings):
    context = {"s": "<b>", "l": [1], "d": {"a": 1}, "n": 5}
    try:
        result = said(source, context, html=True)
    except TemplateError:
        return
    assert not any(word in result for word in SECRETS)
    assert "49" not in result
    assert "<b>" not in result
    assert settings.SECRET_KEY not in result
    assert context == {"s": "<b>", "l": [1], "d": {"a": 1}, "n": 5}


@pytest.mark.parametrize("name", sorted(register.filters))
@pytest.mark.parametrize("value", ["v", "l", "l.0", "v|force_escape", "v|escape", "v|linebreaks"])
@pytest.mark.parametrize("argument", ["", ":v", ":9", ":'x'"])
def test_no_filter_lets_markup_through(name, value, argument):
    evil = "<script>alert('x')</script>"
    try:
        result = said(
            f"{{{{ {value}|{name}{argument} }}}}{{{{ v|{name}{argument} }}}}",
            {"v": evil, "l": [evil]},
            html=True,
        )
    except TemplateError:
        return
    assert "<script" not in result.lower()
