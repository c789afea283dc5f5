import gzip
import time
import tracemalloc

import pytest

from clip_italian.config import ConfigError
from data_prep.il_post import IlPost
from data_prep.markup import feed_items, plain_text
from data_prep.rows import Reject, Row
from tests.data_prep.hostile import entries

FEED = """<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:media="http://search.yahoo.com/mrss/"
  xmlns:content="http://purl.org/rss/1.0/modules/content/">
<channel><title>Foto del giorno</title>
<image><url>https://a.org/logo.png</url></image>
<item>
  <title>Milano</title><guid>7</guid><source url="https://b.org">B</source>
  <description> Una città &amp; la &lt;b&gt;nebbia&lt;/b&gt; </description>
  <enclosure url="https://a.org/1.mp3" type="audio/mpeg"/>
  <enclosure url="https://a.org/1.jpg?a=1&amp;b=2" type="image/jpeg"/>
</item>
<item><description><![CDATA[<p>Un cane<br/>nero</p>]]></description>
  <media:group><media:content url="https://a.org/2.JPG"/></media:group></item>
<item><description>&lt;img alt='x' src="https://a.org/3?x=1&amp;amp;y=2"&gt;Un gatto</description>
</item>
<item><description>Solo testo</description></item>
<item><title>Senza testo</title><enclosure url="https://a.org/5.jpg" type="image/jpeg"/></item>
<item><description>Un asino</description><image> https://a.org/6 </image></item>
</channel></rss>"""


def read(tmp_path, name, data, **flags):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    source = IlPost((str(path),), **flags)
    return list(source.read(*source.inputs()))


def test_feeds(tmp_path):
    rows = [
        Row(6, ("Una città & la nebbia",), "https://a.org/1.jpg?a=1&b=2", license="accordo"),
        Row(12, ("Un cane nero",), "https://a.org/2.JPG", license="accordo"),
        Row(14, ("Un gatto",), "https://a.org/3?x=1&y=2", license="accordo"),
        Reject(16, "no image"),
        Reject(17, "no caption"),
        Row(18, ("Un asino",), "https://a.org/6", license="accordo"),
    ]
    assert read(tmp_path, "feed.xml", FEED, license="accordo") == rows
    packed = gzip.compress(FEED.encode())
    assert read(tmp_path, "FEED.RSS.gz", packed, license="accordo") == rows
    flags = {"caption_column": ("title", "description"), "id_column": "guid"}
    first = read(tmp_path, "feed.xml", FEED, **flags)[0]
    assert first.captions == ("Milano", "Una città & la nebbia") and first.image_id == "7"


def test_atom_and_wordpress_exports(tmp_path):
    atom = """<feed xmlns="http://www.w3.org/2005/Atom"><entry><summary>Un gatto</summary>
      <link href="https://a.org/page"/>
      <link rel="enclosure" type="image/png" href="https://a.org/1.png"/></entry></feed>"""
    items = read(tmp_path, "feed.atom", atom, caption_column=("summary",))
    assert items == [Row(1, ("Un gatto",), "https://a.org/1.png")]
    wordpress = """<rss xmlns:wp="w" xmlns:excerpt="e"><channel><item><wp:post_id>9</wp:post_id>
      <wp:attachment_url>https://a.org/2.jpg</wp:attachment_url>
      <excerpt:encoded><![CDATA[Un cane]]></excerpt:encoded></item></channel></rss>"""
    flags = {"caption_column": ("excerpt:encoded",), "id_column": "wp:post_id"}
    items = read(tmp_path, "export.xml", wordpress, **flags)
    assert items == [Row(1, ("Un cane",), "https://a.org/2.jpg", image_id="9")]


def test_tables_and_json_lines(tmp_path):
    table = 'id,image,caption,license\n7,1.jpg,"Un <i>gatto</i>, nero",CC0\n8,2.jpg,<br>,\n'
    flags = {"id_column": "id", "license": "accordo"}
    rows = [Row(2, ("Un gatto, nero",), "1.jpg", image_id="7", license="CC0")]
    rows += [Reject(3, "no caption", "2.jpg")]
    assert read(tmp_path, "export.csv", table, **flags) == rows
    tabs = table.replace(",", "\t").replace("gatto</i>\t", "gatto</i>,")
    assert read(tmp_path, "export.tsv", tabs, **flags) == rows
    line = '{"didascalia": "Un gatto", "foto": "https://a.org/1.jpg"}\n{}\n'
    flags = {"caption_column": ("didascalia",), "image_column": "foto"}
    rows = [Row(1, ("Un gatto",), "https://a.org/1.jpg"), Reject(2, "no caption")]
    assert read(tmp_path, "export.jsonl.gz", gzip.compress(line.encode()), **flags) == rows


def test_flags_that_cannot_work(tmp_path):
    with pytest.raises(ConfigError, match=r"path: .*export\.txt has no known ending; use \.csv"):
        read(tmp_path, "export.txt", "")
    with pytest.raises(ConfigError, match="image_column: no column 'image' in .*'a', 'caption'"):
        read(tmp_path, "export.csv", "a,caption\n")


def test_hostile_feeds_end_with_a_reject(tmp_path):
    bomb = """<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><rss><item>&y;</item></rss>"""
    item = "<item><description>Un gatto</description><image>1.jpg</image></item>"
    good = Row(1, ("Un gatto",), "1.jpg")
    for data, expected in [
        ("", [(1, "bad XML")]),
        ("no XML", [(1, "bad XML")]),
        (bomb, [(1, "document type in XML")]),
        (f"<rss>{item}\n\n<item>&nbsp;</item></rss>", [(1, "row"), (3, "bad XML")]),
        (f"<rss>{item}\n<item>".encode() + b"\xff", [(1, "row"), (2, "bad XML")]),
        (f"<rss>{item}\n<item>a\0", [(1, "row"), (2, "bad XML")]),
        (f"<rss>{item}\n{item}", [(1, "row"), (2, "row"), (2, "bad XML")]),
        (f"<rss>{item}\n{'<a>' * 200}", [(1, "row"), (2, "XML too deep")]),
        (f"<rss>{item}\n<a b='{'x' * (10 << 20)}", [(1, "row"), (2, "XML tag too long")]),
        ('<?xml version="1.0" encoding="none"?><rss/>', [(1, "bad XML")]),
        ('<?xml version="1.0" encoding="big5"?><rss/>', [(1, "bad XML")]),
        (gzip.compress(f"<rss>{item}</rss>".encode())[:-9], [(1, "row"), (1, "broken archive")]),
    ]:
        items = read(tmp_path, "feed.xml", data)
        assert [(i.line, getattr(i, "reason", "row")) for i in items] == expected
        assert items[0] == good or len(items) == 1


def test_an_item_that_is_too_long_holds_little_memory(tmp_path):
    long = (
        "<item><description>" + "gatto " * (5 << 20) + "</description><image>1.jpg</image></item>"
    )
    path = tmp_path / "feed.xml.gz"
    small = "<item><description>Un gatto</description><image>1.jpg</image></item>"
    path.write_bytes(gzip.compress(f"<rss>{small}\n{long}\n{small * 1000}</rss>".encode(), 1))
    del long
    tracemalloc.start()
    items = list(IlPost((str(path),)).read(str(path)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert entries(items) == 1002 and items[1] == Reject(2, "entry too long")
    assert items[0].captions == items[2].captions == ("Un gatto",)
    assert peak < 60e6


def test_feed_items_name_fields_as_the_file_does(tmp_path):
    (tmp_path / "feed.xml").write_text(
        "<rss><item>\n<dc:creator>A</dc:creator><b>c<i>d</i>e</b></item></rss>"
    )
    assert list(feed_items(str(tmp_path / "feed.xml"))) == [
        (1, {"dc:creator": "A", "b": "ce", "i": "d", "image": ""})
    ]


def test_plain_text():
    assert plain_text("Un gatto &amp; 3 < 5 > 4") == ("Un gatto &amp; 3 < 5 > 4", "")
    assert plain_text("<p>Uno</p><p>due</p>\n<b>tr</b>e <3") == ("Uno  due \ntre <3", "")
    hidden = "a<!-- <b>x</b> --><script>y<b></script><STYLE a='1'>z</style>b"
    assert plain_text(hidden) == ("ab", "")
    assert plain_text("a<!-- b <i>c") == ("a", "")
    assert plain_text("<a><img data-src=no SRC = x.jpg ><img src='y.jpg'>") == ("", "x.jpg")
    assert plain_text("<img src='a&amp;b.jpg'>t") == ("t", "a&b.jpg")


@pytest.mark.parametrize(
    "piece", ["<", "<a ", "<!--", "<script>", "<img src='", "<p ", "</", "a<b>"]
)
def test_plain_text_takes_linear_time(piece):
    start = time.perf_counter()
    plain_text(piece * (1_000_000 // len(piece)))
    assert time.perf_counter() - start < 10  # quadratic would be hours
