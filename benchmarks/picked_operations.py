"""Operations that were picked to find faults of the simulated card: what each takes there and on a real one.

    python benchmarks/picked_operations.py --out real.json                  # where a GPU is
    python benchmarks/picked_operations.py --simulated real.json            # anywhere: the two beside each other

Each begins with an empty allocator. The figures are its peaks, allocated and reserved; of the simulated card with the
margin that it tells (docs/simulated-card.md).
"""

# ruff: noqa: C408 - a table reads better with names that are not in quotes
# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return"

from __future__ import annotations

import argparse
import datetime
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

DEVICE: Any = "cuda"


def normal(*s, dt=torch.float32, g=0):
    return torch.randn(*s, device=DEVICE, dtype=dt).requires_grad_(bool(g))


def with_gradient(f):
    def g():
        y = f()
        y.backward(torch.ones_like(y))

    return g


FP16, BF16 = torch.float16, torch.bfloat16


def whole(n, *sizes):
    return torch.randint(0, n, sizes, device=DEVICE)


def net(*m):
    return nn.Sequential(*m).to(DEVICE)


def opt(kind, **k):
    def f():
        m = net(nn.Linear(2048, 2048), nn.Linear(2048, 512))
        o = kind(m.parameters(), **k)
        for _ in range(2):
            m(normal(64, 2048)).sum().backward()
            o.step()
            o.zero_grad()

    return f


def unet():
    m = net(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.GroupNorm(8, 64),
        nn.SiLU(),
        nn.Conv2d(64, 128, 3, 2, 1),
        nn.GroupNorm(8, 128),
        nn.SiLU(),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(128, 3, 3, padding=1),
    )
    m(normal(8, 3, 128, 128)).square().mean().backward()


def encoder(tr):
    def f():
        m = nn.TransformerEncoder(nn.TransformerEncoderLayer(512, 8, batch_first=True), 4).to(DEVICE).train(tr)
        if tr:
            m(normal(8, 256, 512)).sum().backward()
        else:
            with torch.no_grad():
                m(normal(8, 256, 512))

    return f


def attention(n, d, dt, **k):
    return lambda: (
        F.scaled_dot_product_attention(*[normal(2, 8, n, d, dt=dt, g=1) for _ in range(3)], **k).sum().backward()
    )


N = 2048
OPERATIONS: dict[str, Callable[[], Any]] = dict(
    cdist=lambda: torch.cdist(normal(N, 64), normal(N, 64)),
    cdist_b=with_gradient(lambda: torch.cdist(normal(N, 64, g=1), normal(N, 64))),
    einsum=lambda: torch.einsum("bhid,bhjd->bhij", normal(4, 8, 512, 64), normal(4, 8, 512, 64)),
    bmm_b=with_gradient(lambda: torch.bmm(normal(16, 512, 512, g=1), normal(16, 512, 512, g=1))),
    logsumexp_b=with_gradient(lambda: normal(N, N, g=1).logsumexp(-1)),
    std=lambda: normal(N, N).std(),
    var0=lambda: normal(N, N).var(0),
    quantile=lambda: normal(1000000).quantile(0.5),
    kth=lambda: normal(N, N).kthvalue(5),
    median=lambda: normal(N, N).median(),
    median1=lambda: normal(N, N).median(1),
    mode=lambda: normal(N, 100).mode(),
    sortdim=lambda: normal(N, N).sort(-1),
    sort0=lambda: normal(N, N).sort(0),
    sortbig=lambda: normal(64, 100000).sort(-1),
    argsort_st=lambda: normal(N, N).argsort(stable=True),
    topk1=lambda: normal(64, 200000).topk(50),
    cumsum0=lambda: normal(N, N).cumsum(0),
    cumprod_b=with_gradient(lambda: normal(N, N, g=1).cumprod(0)),
    cummax=lambda: normal(N, N).cummax(0),
    fft=lambda: torch.fft.fft2(normal(N, N)),
    rfft=lambda: torch.fft.rfft(normal(64, 65536)),
    svd=lambda: torch.linalg.svd(normal(512, 512)),
    eigh=lambda: torch.linalg.eigh(normal(1024, 1024)),
    qr=lambda: torch.linalg.qr(normal(1024, 1024)),
    pinv=lambda: torch.linalg.pinv(normal(512, 512)),
    gather_b=with_gradient(lambda: normal(N, N, g=1).gather(1, whole(N, N, N))),
    adv_b=with_gradient(lambda: normal(N, N, g=1)[whole(N, 4096)]),
    putacc=lambda: normal(N, N).index_put((whole(N, 50000),), normal(50000, N), accumulate=True),
    take=lambda: normal(N, N).take(whole(N, N, N)),
    embbag_b=with_gradient(
        lambda: F.embedding_bag(whole(9999, 4096), normal(10000, 512, g=1), torch.arange(0, 4096, 8, device=DEVICE))
    ),
    embpad_b=with_gradient(lambda: F.embedding(whole(9999, 64, 512), normal(10000, 512, g=1), padding_idx=0)),
    nll2d=lambda: F.cross_entropy(normal(4, 21, 256, 256, g=1), whole(21, 4, 256, 256)).backward(),
    gn_b=with_gradient(lambda: F.group_norm(normal(16, 256, 64, 64, g=1), 32, normal(256, g=1), normal(256, g=1))),
    in_b=with_gradient(lambda: F.instance_norm(normal(16, 64, 64, 64, g=1))),
    bn1_b=with_gradient(lambda: nn.BatchNorm1d(N).to(DEVICE)(normal(1024, N, g=1))),
    maxpool_b=with_gradient(lambda: F.max_pool2d(normal(16, 64, 112, 112, g=1), 3, 2)),
    avgpool_b=with_gradient(lambda: F.avg_pool2d(normal(16, 64, 112, 112, g=1), 2)),
    interp_b=with_gradient(lambda: F.interpolate(normal(4, 64, 64, 64, g=1), scale_factor=2, mode="bilinear")),
    bicub=lambda: F.interpolate(normal(4, 64, 64, 64), size=(100, 100), mode="bicubic", antialias=True),
    gridb=with_gradient(lambda: F.grid_sample(normal(4, 64, 64, 64, g=1), normal(4, 64, 64, 2, g=1))),
    unfold_b=with_gradient(lambda: F.unfold(normal(4, 64, 64, 64, g=1), 3)),
    dw_b=with_gradient(lambda: F.conv2d(normal(8, 256, 56, 56, g=1), normal(256, 1, 3, 3, g=1), padding=1, groups=256)),
    conv1=with_gradient(lambda: F.conv1d(normal(8, 80, 3000, g=1), normal(512, 80, 3, g=1), padding=1)),
    conv11=with_gradient(lambda: F.conv2d(normal(8, 256, 56, 56, g=1), normal(64, 256, 1, 1, g=1))),
    conv33h=with_gradient(
        lambda: F.conv2d(normal(16, 128, 56, 56, dt=FP16, g=1), normal(128, 128, 3, 3, dt=FP16, g=1), padding=1)
    ),
    convT=with_gradient(
        lambda: F.conv_transpose2d(normal(8, 128, 32, 32, g=1), normal(128, 64, 4, 4, g=1), stride=2, padding=1)
    ),
    conv3=with_gradient(lambda: F.conv3d(normal(2, 16, 16, 56, 56, g=1), normal(32, 16, 3, 3, 3, g=1))),
    convcl=with_gradient(
        lambda: F.conv2d(
            normal(16, 64, 56, 56, dt=FP16, g=1).to(memory_format=torch.channels_last),
            normal(64, 64, 3, 3, dt=FP16, g=1),
        )
    ),
    unet=unet,
    enc_t=encoder(True),
    enc_e=encoder(False),
    a72=attention(500, 72, FP16),
    a100=attention(500, 100, FP16),
    a256=attention(1024, 256, BF16),
    a512=attention(256, 512, FP16),
    adrop=attention(512, 64, FP16, dropout_p=0.1),
    adropf=attention(512, 64, torch.float32, dropout_p=0.1, is_causal=True),
    adbl=attention(256, 64, torch.float64),
    across=lambda: (
        F.scaled_dot_product_attention(
            normal(2, 8, 4096, 40, dt=FP16, g=1), normal(2, 8, 77, 40, dt=FP16, g=1), normal(2, 8, 77, 40, dt=FP16, g=1)
        )
        .sum()
        .backward()
    ),
    adec=lambda: F.scaled_dot_product_attention(
        normal(1, 32, 1, 128, dt=BF16), normal(1, 32, 8000, 128, dt=BF16), normal(1, 32, 8000, 128, dt=BF16)
    ),
    nadam=opt(torch.optim.NAdam),
    adamams=opt(torch.optim.AdamW, amsgrad=True),
    sgdf=opt(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True),
    capt=opt(torch.optim.AdamW, capturable=True),
    fp8=lambda: torch._scaled_mm(
        normal(N, N).to(torch.float8_e4m3fn),
        normal(N, N).to(torch.float8_e4m3fn).t(),
        scale_a=torch.ones((), device=DEVICE),
        scale_b=torch.ones((), device=DEVICE),
        out_dtype=BF16,
    ),
    intmm=lambda: torch._int_mm(whole(9, N, N).to(torch.int8), whole(9, N, N).to(torch.int8)),
    dbl=lambda: normal(N, N, dt=torch.float64) @ normal(N, N, dt=torch.float64),
    cplx=lambda: normal(N, N, dt=torch.complex64) @ normal(N, N, dt=torch.complex64),
    multin=lambda: torch.multinomial(normal(64, 50000).softmax(-1), 5),
    multir=lambda: torch.multinomial(normal(64, 50000).softmax(-1), 5, replacement=True),
    histc=lambda: torch.histc(normal(N, N), 100),
    ss=lambda: torch.searchsorted(normal(N).sort()[0], normal(N, N)),
    bilin=with_gradient(lambda: F.bilinear(normal(256, 128, g=1), normal(256, 128), normal(64, 128, 128, g=1))),
    prelu=with_gradient(lambda: F.prelu(normal(64, 64, 56, 56, g=1), normal(64, g=1))),
    lu=lambda: torch.linalg.lu_factor(normal(512, 512)),
    slog=lambda: torch.linalg.slogdet(normal(512, 512)),
)


def taken(run: Callable[[], Any], margins: Any = None) -> dict[str, int]:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    if margins is not None:
        margins.take(0)
    run()
    found = {
        "allocated": torch.cuda.max_memory_allocated() - before,
        "reserved": torch.cuda.max_memory_reserved(),
        "reach": margins.take(0) - before if margins is not None else 0,
    }
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    return found


def compared(real: dict[str, Any], simulated: dict[str, dict[str, int]]) -> None:
    for name, on_card in real["operations"].items():
        here = simulated[name]
        error = 100 * (here["allocated"] / on_card["allocated"] - 1)
        if abs(error) < 0.5:
            continue
        covered = max(here["reach"], here["allocated"]) >= on_card["allocated"]
        words = "covered by its margin" if covered and error < 0 else "too high" if error > 0 else "NOT COVERED"
        print(f"{name:<12} {on_card['allocated']:>12,} B, predicted {error:+6.1f} %: {words}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write what a real card takes")
    parser.add_argument("--simulated", type=Path, metavar="REAL", help="compare with what was written there")
    arguments = parser.parse_args()
    if arguments.simulated is None:
        found = {
            "torch": torch.__version__,
            "card": torch.cuda.get_device_name(),
            "date": datetime.date.today().isoformat(),
            "operations": {name: taken(run) for name, run in OPERATIONS.items()},
        }
        text = json.dumps(found, indent=1)
        print(text) if arguments.out is None else arguments.out.write_text(text + "\n")
        return
    from pytest_memleak.cards.simulated.process import simulation_of
    from pytest_memleak.cards.simulated.profiles import cards_of

    simulation = simulation_of(cards_of("h200"))
    simulation.on()
    real = json.loads(arguments.simulated.read_text())
    compared(real, {name: taken(run, simulation.margins) for name, run in OPERATIONS.items()})


if __name__ == "__main__":
    main()
