"""Trials of a tuned and confirmed sweep, and a report's page as its tags, texts and cells."""

from __future__ import annotations

from html.parser import HTMLParser

from records import make_trial

EVIL = '<script>alert("x")</script>'


def trials_of(world, depths=(0, 2, 6), **knobs):
    """Tuned on two rates and confirmed."""
    tuning = [make_trial(world, freeze_depth=d, learning_rate=rate, seed=s, skill=1.5 - 0.1 * d - (rate > 5e-5),
                         **knobs)
              for d in depths for rate in (5e-5, 1e-4) for s in (1, 2)]
    return tuning + [make_trial(world, freeze_depth=d, learning_rate=5e-5, seed=s, skill=1.5 - 0.1 * d, phase="confirm",
                                **knobs) for d in depths for s in range(3, 9)]


class Page(HTMLParser):
    """Tags, attributes, texts by element id, table cells and the embedded summary."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.cells, self.path, self.texts = [], [], [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.attributes.append((tag, attributes))
        self.path.append((tag, attributes.get("id")))
        if tag == "td":
            self.cells.append([attributes.get("data-value"), ""])

    def handle_endtag(self, tag):
        while self.path and self.path.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for _, name in self.path:
            if name:
                self.texts[name] = self.texts.get(name, "") + data
        if self.path and self.path[-1][0] == "td":
            self.cells[-1][1] += data
