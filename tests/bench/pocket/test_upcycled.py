"""A model whose experts are copies of one network."""

import torch

from bench.pocket.upcycled import model_of, upcycled


def test_copies_are_the_dense_model_and_noise_sets_them_apart() -> None:
    dense = model_of(1, seed=3)
    ids = torch.arange(24).reshape(2, 12)
    same, noisy = (upcycled(dense, 8, noise, seed=4) for noise in (0.0, 0.02))
    with torch.no_grad():
        torch.testing.assert_close(same(input_ids=ids).logits, dense(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    for name, weight in noisy.named_parameters():
        if ".mlp.experts." in name:
            flat = weight.detach().flatten(1)
            cosines = torch.nn.functional.cosine_similarity(flat[0], flat[1:])
            assert (cosines > 0.99).all() and not torch.equal(flat[0], flat[1])
    routers = [weight for name, weight in noisy.named_parameters() if ".mlp.gate." in name]
    assert len(routers) == 6 and all(len(weight) == 8 and weight.std() > 0 for weight in routers)
