"""Which channels each class may use: measured once on the patient's own training images, before it is treated."""

from pathlib import Path

import torch
from torch import Tensor, nn

from hardy.attacks.passes import sealed_rng
from hardy.attacks.precision import full_precision
from hardy.data import ArrayData
from hardy.diagnosis.correlation import class_channel_map, sure_images
from hardy.diagnosis.record import Diagnosis
from hardy.errors import DataError, ParameterError
from hardy.evaluation.fingerprint import weights_digest
from hardy.last_map import LAST, last_map
from hardy.methods import ModelDoctor
from hardy.methods.model_doctor import read_relevance, write_relevance

__all__ = ["TOP", "measure_relevance"]

TOP = {"paper": 100, "repo": 50}  # images of each class, by the two generations of the code


def measure_relevance(
    patient: nn.Module,
    data: ArrayData,
    method: ModelDoctor,
    file: Path,
    *,
    diagnosis: Diagnosis | None = None,
    top: int,
    device: str = "cpu",
    batch_size: int = 128,
) -> dict[str, Tensor]:
    """Measure the relevance of channels (Eq. 3) at the sites of a method, and write it; what is there is read.

    Args:
        patient: In eval mode.
        data: Training images.
        method: Whose sites and sign are asked for.
        file: Where to write.
        diagnosis: Its maps are taken; of this net, of training images, the same sites, sign and ``top``.
        top: Images of each class: the surest right ones.
        device: Where to compute.
        batch_size: Images per pass.

    Returns:
        (classes, channels) by site.

    Raises:
        DataError: the patient is right on no image.
        ParameterError: the diagnosis is of another net, or answers another question.
    """
    if file.exists():
        return read_relevance(file)
    example = data.subset(torch.tensor([0])).images()
    sites = [last_map(patient, example)[0] if site == LAST else site for site in method.sites]
    maps = {} if diagnosis is None else _known(diagnosis, patient, sites, sign=method.sign, top=top)
    if not maps:
        net = patient.to(device)
        chosen = _sure(net, data, top=top, device=device, batch_size=batch_size)
        x, y = chosen.images().to(device), chosen.y.to(device)
        found = class_channel_map(
            net, x, y, layers=sites, top=top, sign=method.sign, rows=chosen.index.to(device), batch_size=batch_size
        )
        patient.cpu()
        maps = {site: value.cpu() for site, value in found.maps.items()}
    write_relevance(file, maps, sign=method.sign, top=top)
    return maps


@torch.no_grad()
def _sure(net: nn.Module, data: ArrayData, *, top: int, device: str, batch_size: int) -> ArrayData:
    """Keep the images that the maps are of, so that only these need to be floats in memory.

    Raises:
        DataError: the net is right on none.
    """
    place = torch.device(device)
    with full_precision(place), sealed_rng(place, 0):
        logits = torch.cat([net(x.to(place)).cpu() for x, _ in data.batches(batch_size)])
    index = sure_images(logits, data.y, top=top)
    if not len(index):
        raise DataError("treat: the patient must be right on some training images; it is on none.")
    return data.subset(index)


def _known(diagnosis: Diagnosis, patient: nn.Module, sites: list[str], *, sign: str, top: int) -> dict[str, Tensor]:
    """Take the maps out of a diagnosis.

    Raises:
        ParameterError: it does not answer the question; the message says in what.
    """
    wanted = {"weights": weights_digest(patient), "sign": sign, "top": top, "draws": 0}
    other = [key for key, value in wanted.items() if diagnosis.options.get(key) != value]
    if "train" not in (diagnosis.map_data or diagnosis.data).split():
        other.append("images, not those of training")
    if other:
        raise ParameterError(f"treat: diagnosis must be of this net and question; it has other {', '.join(other)}.")
    return {site: diagnosis.correlation(site) for site in sites}
