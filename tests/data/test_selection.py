import numpy as np
import pytest

from clip_italian.data.length_groups import LengthPlan
from tests.data.conftest import NUMBERED, change, numbers_in_tokens, open_training

PLAN = LengthPlan((8, 12, 16), (4, 8, 4))  # captions of 5 to 14 tokens: now and then too many
STEPS = range(8)


@pytest.fixture
def select(numbered, tokenizer):
    def make(plan=PLAN, shares=1, **process):
        return open_training(numbered, tokenizer, plan=plan, shares=shares, **process).selection

    return make


def by_share(groups, shares):
    """Numbers in the captions of each row, in the order in which a model joins them."""
    parts = [numbers_in_tokens(group).reshape(shares, -1) for group in groups]
    return np.hstack(parts).ravel()


def rows_of(chosen):
    return {tuple(row) for row in np.stack([chosen.position, chosen.record, chosen.caption]).T}


@pytest.mark.parametrize("shares", [1, 2, 4])
def test_tokens_belong_to_their_rows(select, shares):
    selection = select(shares=shares)
    plans = set()
    for step in STEPS:
        chosen = selection.at(step)
        groups = selection.text(chosen)
        np.testing.assert_array_equal(by_share(groups, shares), chosen.record)
        shapes = tuple(group.input_ids.shape for group in groups)
        plans.add(shapes)
        if len(shapes) > 1:
            assert shapes == ((4, 8), (8, 12), (4, 16))
        image_id, caption_id = selection.ids(chosen)
        index = selection.captions[0]
        np.testing.assert_array_equal(image_id, index.image_id[chosen.record])
        np.testing.assert_array_equal(caption_id, index.caption_id[chosen.caption])
    assert plans == {((4, 8), (8, 12), (4, 16)), ((16, 20),)}  # both plans were seen


def test_groups_hold_the_pairs_and_tokens_of_one_group(select):
    grouped, plain = select(shares=2), select(None)
    for step in STEPS:
        ours, whole = grouped.at(step), plain.at(step)
        assert rows_of(ours) == rows_of(whole) and len(rows_of(ours)) == 16
        (padded,) = plain.text(whole)
        expected = {tuple(row[row != 0]) for row in padded.input_ids}
        found = set()
        for group in grouped.text(ours):
            for ids, mask in zip(*group, strict=True):
                assert not ids[mask == 0].any()  # padded with the padding token, on the right
                found.add(tuple(ids[mask == 1]))
        assert found == expected and len(found) == 16


def test_a_batch_that_does_not_fit_is_padded_and_not_cut(select):
    selection = select(LengthPlan((8, 12), (8, 8)))
    captions = selection.captions[0]
    fitted = 0
    for step in STEPS:
        chosen = selection.at(step)
        longer = captions.lengths(chosen.caption)
        fits = (longer > 8).sum() <= 8 and longer.max() <= 12
        assert chosen.plan.lengths == ((8, 12) if fits else (20,))
        total = sum(group.attention_mask.sum() for group in selection.text(chosen))
        assert total == longer.sum()
        fitted += fits
    assert fitted < len(STEPS)


@pytest.mark.parametrize("shares", [2, 4])
def test_hosts_own_consecutive_shares(select, shares):
    whole = select(shares=shares)
    hosts = [select(shares=shares, process_index=k, process_count=2) for k in (0, 1)]
    assert [host.rows for host in hosts] == [8, 8]
    for step in STEPS:
        expected, parts = whole.at(step), [host.at(step) for host in hosts]
        for name in ("position", "record", "caption"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(expected, name))
        texts = [host.text(part) for host, part in zip(hosts, parts, strict=True)]
        for group, (first, second) in zip(
            whole.text(expected), zip(*texts, strict=True), strict=True
        ):
            joined = np.concatenate([first.input_ids, second.input_ids])
            np.testing.assert_array_equal(joined, group.input_ids)


def test_a_batch_must_split(select):
    with pytest.raises(ValueError, match="16 does not split over 3 shares"):
        select(shares=3)
    with pytest.raises(ValueError, match="over 2 hosts"):
        select(shares=1, process_count=2)


def test_a_replacement_fits_where_the_broken_caption_was(select):
    before, after = select(shares=4), select(shares=4)
    broken = [n for n in range(NUMBERED) if n % 3 == 0]
    for record in broken:
        assert after.note_broken(0, record)
    assert not after.note_broken(0, broken[0])
    order, captions = after.order, after.captions[0]
    replaced = 0
    for step in STEPS:
        old, new = before.at(step), after.at(step)
        assert old.plan == new.plan  # whatever is broken
        np.testing.assert_array_equal(old.position, new.position)
        bad = np.isin(old.record, broken)
        np.testing.assert_array_equal(new.record[~bad], old.record[~bad])
        assert not np.isin(new.record, broken).any()
        np.testing.assert_array_equal(by_share(after.text(new), 4), new.record)
        own = captions.lengths(old.caption)
        most = [min(length + -length % 4, 20) for length in own]  # groups are multiples of 4
        for row in np.flatnonzero(bad):
            tried = [order.replacement(new.position[row], 0, n) for n in range(100)]
            good = [n for n in tried if n not in broken and captions.lengths(n) <= most[row]]
            assert new.record[row] == good[0]
        replaced += bad.sum()
    assert replaced > 20


def test_replacements_rest_on_the_position_alone(select):
    plans = (LengthPlan((12, 20), (8, 8)), LengthPlan((16, 20), (8, 8)), LengthPlan((20,), (16,)))
    shown = []
    for plan, shares in zip(plans, (1, 4, 2), strict=True):
        selection = select(plan, shares=shares)
        for record in range(0, NUMBERED, 2):
            selection.note_broken(0, record)
        found = [selection.at(step) for step in STEPS]
        by_position = {
            position: (record, caption)
            for chosen in found
            for position, record, caption in zip(
                chosen.position, chosen.record, chosen.caption, strict=True
            )
        }
        shown.append(by_position)
    assert shown[0] == shown[1] == shown[2]


def test_too_few_sound_records_are_an_error(select):
    selection = select()
    for record in range(NUMBERED):
        selection.note_broken(0, record)
    with pytest.raises(RuntimeError, match="48 records cannot be decoded; prepare 'n' again"):
        selection.at(0)


def test_sources_are_told_apart(config, tokenizer):
    selection = open_training(change(config, batch_size=16), tokenizer).selection
    chosen = selection.at(1)
    assert set(chosen.source) == {0, 1}
    image_id, _ = selection.ids(chosen)
    expected = [
        selection.captions[s].image_id[r] for s, r in zip(chosen.source, chosen.record, strict=True)
    ]
    np.testing.assert_array_equal(image_id, expected)
    (group,) = selection.text(chosen)
    for row, (source, caption) in enumerate(zip(chosen.source, chosen.caption, strict=True)):
        ids = selection.captions[source].tokens(np.array([caption]), 6).input_ids[0]
        np.testing.assert_array_equal(group.input_ids[row], ids)
