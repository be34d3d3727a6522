"""Layer mapping, against the published code's lists; and taps of the mapped names give the right outputs."""

from __future__ import annotations

import pytest
import torch

from bitstill.errors import BitstillError, MatchError
from bitstill.losses.features import Pair
from bitstill.losses.layer_maps import hidden_pairs, score_pairs
from bitstill.losses.taps import tap
from bitstill.model.attention_operands import SCORES
from bitstill.model.blocks import choose, reduced
from tests.recipes.encoders import encoder, forward, task


def targets(layers, depth, layer_map):
    pairs = hidden_pairs(layers, depth, layer_map)
    assert [pair.student for pair in pairs] == [f"hidden:{i}" for i in range(len(layers) + 1)]
    return [int(pair.teacher.removeprefix("hidden:")) for pair in pairs]


@pytest.mark.parametrize(
    ("layers", "paper", "last"),
    [
        ((1, 3, 5, 7, 9, 11), [0, 2, 4, 6, 8, 10, 12], [0, 2, 4, 6, 8, 10, 12]),  # Wu et al. 2022, six layers
        ((2, 4, 6, 8, 10), [1, 3, 5, 7, 9, 11], [0, 3, 5, 7, 9, 12]),  # five layers: ends at the output of layer 10
        (tuple(range(12)), list(range(13)), list(range(13))),
        ((0, 1, 2), [0, 1, 2, 3], [0, 1, 2, 12]),
        ((9, 10, 11), [8, 10, 11, 12], [0, 10, 11, 12]),
        ((11,), [10, 12], [0, 12]),
        ((0,), [0, 1], [0, 12]),
    ],
)
def test_hidden_states_follow_the_published_lists_and_the_better_ends(layers, paper, last):
    assert targets(layers, 12, "paper") == paper
    assert targets(layers, 12, "last") == last


def test_the_better_map_is_the_default_and_attention_follows_the_layers():
    assert hidden_pairs((2, 4), 6) == hidden_pairs((2, 4), 6, "last")
    assert score_pairs((2, 4)) == (Pair("scores:0", "scores:2"), Pair("scores:1", "scores:4"))


def test_both_maps_agree_wherever_the_usual_choice_halves_the_teacher():
    for depth in (2, 4, 6, 12, 24):
        layers = choose(depth, depth // 2, "skip")
        assert hidden_pairs(layers, depth, "paper") == hidden_pairs(layers, depth, "last")


def tapped(model, names):
    with tap(model, names) as found, torch.no_grad():
        logits = forward(model, task().sample(4))
    return dict(found), logits


def test_hidden_states_are_what_enters_the_first_block_and_leaves_each():
    model, batch = encoder(), task().sample(4)
    found, _ = tapped(model, [f"hidden:{i}" for i in range(5)])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        x = model.words(ids) + model.positions(torch.arange(ids.shape[1]))
        assert torch.equal(found["hidden:0"], x)
        for index, block in enumerate(model.blocks):
            (x,) = block(x, mask.bool())
            assert torch.equal(found[f"hidden:{index + 1}"], x)


def test_scores_are_those_of_each_block_before_mask_and_softmax():
    model = encoder()
    found, logits = tapped(model, ["hidden:2", "scores:2"])
    attention = model.blocks[2]
    with torch.no_grad():
        query, key = (
            part(found["hidden:2"]).unflatten(-1, (2, 8)).transpose(1, 2) for part in (attention.query, attention.key)
        )
        assert torch.equal(found["scores:2"], query @ key.transpose(2, 3) / 8**0.5)
    assert found["scores:2"].shape[1:] == (2, *found["hidden:2"].shape[1:2] * 2)
    assert torch.equal(logits, forward(model, task().sample(4))), "and the tap changes nothing"


def test_a_reduced_copy_starts_with_its_embeddings_matched():
    teacher = encoder()
    student = reduced(teacher, (1, 3))
    for pair in hidden_pairs((1, 3), 4)[:1]:
        ours, theirs = tapped(student, [pair.student])[0], tapped(teacher, [pair.teacher])[0]
        assert torch.equal(ours[pair.student], theirs[pair.teacher])


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_behind(fails):
    model = encoder()
    try:
        with tap(model, ["hidden:0", "hidden:3", "scores:1"]):
            assert sum(SCORES in module.__dict__ for module in model.modules()) > 0
            forward(model, task().sample())
            assert not fails, "stop here"
    except AssertionError:
        assert fails
    assert not any(SCORES in m.__dict__ or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["hidden:5", "scores:4", "scores:99"])
def test_a_layer_that_is_not_there_is_named_with_how_many_there_are(name):
    with pytest.raises(MatchError, match=rf"one of the 4 blocks in 'blocks', got '{name}'"), tap(encoder(), [name]):
        pass


@pytest.mark.parametrize("name", ["hidden:-1", "scores:-1", "hidden:last", "scores:"])
def test_a_layer_that_is_no_number_from_0_is_refused(name):
    with pytest.raises(BitstillError, match=name), tap(encoder(), [name]):
        pass


def test_the_blocks_are_looked_for_once_however_many_taps_there_are(monkeypatch):
    """Each search walks all modules: one for every tap of every step took longer than a small model's forward pass."""
    import bitstill.losses.taps as taps

    searches = []
    monkeypatch.setattr(taps, "blocks", lambda model, real=taps.blocks: searches.append(model) or real(model))
    with tap(encoder(), [*(f"hidden:{i}" for i in range(5)), *(f"scores:{i}" for i in range(4))]):
        pass
    assert len(searches) == 1


# With transformers.


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "roberta", "gpt2"])
@pytest.mark.parametrize("padded", [True, False])
def test_taps_see_the_hidden_states_of_transformers_and_do_not_change_what_it_computes(family, padded):
    transformers = pytest.importorskip("transformers")
    from bitstill.hf import attention_scores as attention

    if family == "distilbert":
        sizes = {"dim": 16, "hidden_dim": 32, "n_layers": 3, "n_heads": 2}
    elif family == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 3, "n_head": 2}
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        family, vocab_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, num_labels=2, initializer_range=0.3, **sizes
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    attention.use(model)
    mask = torch.ones(3, 7, dtype=torch.int64)
    if padded:
        mask[0, 4:] = mask[1, 2:] = 0
    ids = torch.randint(1, 40, (3, 7)) * mask
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        with tap(model, [*(f"hidden:{i}" for i in range(4)), *(f"scores:{i}" for i in range(3))]) as found:
            output = model(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(output.logits, plain.logits)
    assert all(found[f"scores:{i}"].shape == (3, 2, 7, 7) for i in range(3))
    real = mask.bool()
    # In transformers, a decoder's last hidden state comes after its final norm.
    for index in range(3 if family == "gpt2" else 4):
        torch.testing.assert_close(found[f"hidden:{index}"][real], plain.hidden_states[index][real])
