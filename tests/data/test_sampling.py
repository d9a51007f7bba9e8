from __future__ import annotations

import numpy as np

from growtx.data.packing import Mix, window_indices

MIX = Mix(num_windows=(10, 25, 400), weights=(1.0, 1.0, 2.0))


def _run(mix: Mix, *, seed: int, num_steps: int, batch: int) -> np.ndarray:
    return np.concatenate(
        [window_indices(mix, seed=seed, step=step, global_batch_size=batch) for step in range(num_steps)]
    )


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    whole = _run(MIX, seed=3, num_steps=20, batch=8)
    assert window_indices(MIX, seed=3, step=17, global_batch_size=8).tolist() == whole[17 * 8 : 18 * 8].tolist()
    assert _run(MIX, seed=4, num_steps=20, batch=8).tolist() != whole.tolist()


def test_no_window_returns_before_its_source_is_through() -> None:
    indices = _run(Mix((36,), (1.0,)), seed=0, num_steps=36, batch=3)
    epochs = indices.reshape(3, 36)
    assert all(sorted(epoch.tolist()) == list(range(36)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_epochs_that_end_inside_a_step_are_complete_too() -> None:
    indices = _run(Mix((10,), (1.0,)), seed=1, num_steps=15, batch=8)
    assert np.bincount(indices, minlength=10).tolist() == [12] * 10


def test_sources_are_sampled_by_weight_not_by_size() -> None:
    indices = _run(MIX, seed=0, num_steps=50, batch=16)
    counts = [((indices >= low) & (indices < high)).sum() for low, high in ((0, 10), (10, 35), (35, 435))]
    assert counts == [200, 200, 400]


def test_weights_are_relative() -> None:
    doubled = Mix(MIX.num_windows, tuple(2 * weight for weight in MIX.weights))
    assert _run(MIX, seed=0, num_steps=5, batch=8).tolist() == _run(doubled, seed=0, num_steps=5, batch=8).tolist()


def test_every_slice_of_a_step_holds_every_source() -> None:
    even = Mix((1000, 1000), (1.0, 1.0))
    halves = [window_indices(even, seed=0, step=step, global_batch_size=32).reshape(2, 16) < 1000 for step in range(50)]
    assert all(0 < half.sum() < 16 for pair in halves for half in pair)


def test_stages_with_other_batch_sizes_continue_where_the_last_one_ended() -> None:
    one = Mix((1000,), (1.0,))
    first = _run(one, seed=5, num_steps=10, batch=8)
    second = [window_indices(one, seed=5, step=step, global_batch_size=20, num_samples_before=80) for step in range(46)]
    assert sorted(np.concatenate([first, *second]).tolist()) == list(range(1000))


def test_corpora_of_any_size_cost_a_batch() -> None:
    huge = Mix((10**12, 3), (0.9, 0.1))
    indices = window_indices(huge, seed=0, step=10**9, global_batch_size=100)
    assert (indices < 10**12).sum() in (89, 90, 91)
    assert indices.max() < 10**12 + 3


def test_the_order_is_the_same_on_every_platform_and_in_every_version() -> None:
    two = Mix((7, 11), (1.0, 2.0))
    pinned = {
        (0, 0): [14, 15, 17, 6, 1, 9, 7, 8, 3, 10, 2, 12, 11, 13, 0, 16, 12, 5, 16, 11],
        (0, 13): [0, 11, 16, 11, 16, 4, 5, 12, 14, 10, 8, 3, 9, 13, 7, 2, 1, 15, 17, 4],
        (1, 0): [3, 10, 12, 15, 4, 8, 13, 16, 0, 9, 2, 7, 17, 6, 11, 14, 17, 16, 10, 5],
        (1, 13): [11, 6, 17, 16, 17, 10, 5, 1, 15, 1, 14, 11, 5, 8, 12, 7, 9, 6, 0, 13],
    }
    for (seed, before), expected in pinned.items():
        steps = [
            window_indices(two, seed=seed, step=step, global_batch_size=4, num_samples_before=before)
            for step in range(5)
        ]
        assert np.concatenate(steps).tolist() == expected


def test_each_seed_epoch_and_source_has_an_order_of_its_own() -> None:
    one_by_one = [_run(Mix((40, 40), (1.0, 1.0)), seed=seed, num_steps=160, batch=1) for seed in (0, 1)]
    orders = [
        (windows[windows // 40 == source] % 40)[40 * epoch : 40 * (epoch + 1)].tolist()
        for windows in one_by_one
        for source in (0, 1)
        for epoch in (0, 1)
    ]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({tuple(order) for order in [*orders, list(range(40))]}) == len(orders) + 1


def test_each_step_has_an_order_of_its_own() -> None:
    mix = Mix((1000,), (1.0,))
    stream, steps = _run(mix, seed=0, num_steps=64, batch=1), _run(mix, seed=0, num_steps=4, batch=16).reshape(4, 16)
    orders = [[stream[16 * n : 16 * n + 16].tolist().index(window) for window in step] for n, step in enumerate(steps)]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert len({tuple(order) for order in [*orders, list(range(16))]}) == 5


def test_the_first_window_is_any_of_them() -> None:
    firsts = [window_indices(Mix((5,), (1.0,)), seed=seed, step=0, global_batch_size=1)[0] for seed in range(2000)]
    counts = np.bincount(firsts, minlength=5)
    assert ((counts - 400) ** 2 / 400).sum() < 25  # chi-square of 4 degrees of freedom: p > 5e-5
