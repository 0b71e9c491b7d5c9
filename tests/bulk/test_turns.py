"""Parts of a job among devices: each made once, shared out by text and not by number."""

import pytest

from archport.bulk.parts import Part, Turns
from archport.bulk.rows import Row
from archport.contract import InputError
from archport.device import processes
from archport.device.processes import ids_of


def parts(lengths):
    """A part of one text for each length."""
    return [
        Part(at, at, [Row(("rows", "line", at), None, "w" * length)], [at], {}, "") for at, length in enumerate(lengths)
    ]


def made(lengths, devices, shard=(0, 1)):
    """The numbers of the parts that each device makes."""
    turns = [Turns(shard, (device, devices)) for device in range(devices)]
    return [[part.number for part in parts(lengths) if each.mine(part)] for each in turns]


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_every_part_of_a_shard_is_one_device_s(devices):
    lengths = [7 * at % 11 for at in range(40)]
    for index in range(2):
        found = sorted(number for own in made(lengths, devices, (index, 2)) for number in own)
        assert found == list(range(index, 40, 2))


def test_a_long_part_is_as_much_work_as_several_short_ones():
    first, second = made([900, 100, 100, 100, 100, 100, 100, 100, 100, 100], 2)
    assert first == [0]
    assert second == list(range(1, 10))


def test_parts_of_equal_texts_take_turns():
    assert made([5] * 6, 2) == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.only_on("cpu", reason="a GPU's machine has as many as it has")
def test_all_devices_of_a_machine_without_a_gpu_are_one():
    assert ids_of("all") == ["0"]


@pytest.mark.parametrize("devices", ["0", "", "0,", "1,1"])
def test_no_devices_are_refused(devices):
    with pytest.raises(InputError, match="expected all, a number"):
        ids_of(devices)


@pytest.mark.parametrize("devices", ["99999999", "9" * 5000, "0,zz", "0,4096", "GPU-0"])
def test_devices_that_are_not_there_are_refused_before_a_process_starts(devices, monkeypatch):
    monkeypatch.setattr(processes, "_gpus", lambda: 0)
    with pytest.raises(InputError, match="cores and no GPU: expected all, a number from 1 to"):
        ids_of(devices)


def test_a_gpu_has_a_number_that_this_process_sees_or_a_name(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert ids_of("2") == ["0", "1"]
    assert ids_of("1,GPU-9b71") == ["1", "GPU-9b71"]
    with pytest.raises(InputError, match="2 GPUs that this process sees"):
        ids_of("3")
