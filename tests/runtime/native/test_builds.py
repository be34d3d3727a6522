"""Builds for other processors, run in an emulator, and builds with sanitizers, if their compilers are installed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import bitstill

ROOT = Path(bitstill.__file__).parents[2]
NATIVE = ROOT / "src" / "bitstill" / "runtime" / "native"
FLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math"]
AVX512 = ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"]
ARM = {"portable": [], "neon": ["-march=armv8.2-a+dotprod"]}
X86 = {
    "portable": [], "avx2": ["-mavx2", "-mfma"], "avxvnni": ["-mavx2", "-mfma", "-mavxvnni"], "avx512": AVX512,
    "amx": [*AVX512, "-mamx-tile", "-mamx-int8"],
}  # fmt: skip
CHECK = Path(__file__).with_name("check.c")


def built(out, compiler, tiers, *flags, sources=(CHECK,)):
    """Build the library with extra sources, for one processor: a program, or a library with -shared."""
    common = [compiler, *FLAGS, *flags, f"-I{NATIVE}"]
    objects, defines = [], []
    for tier, own in tiers.items():
        if subprocess.run([compiler, *own, "-E", "-x", "c", os.devnull], check=False, capture_output=True).returncode:
            continue  # a compiler older than the instruction set
        which = [f"-DTIER={tier}", f'-DTIER_FILE="tiers/{tier}.h"']
        for kernel in NATIVE.glob("kernels/*.c"):
            objects.append(out.with_name(f"{tier}_{kernel.stem}.o"))
            subprocess.run([*common, *own, *which, "-c", kernel, "-o", objects[-1]], check=True)
        defines.append(f"-DBS_{tier.upper()}")
    subprocess.run([*common, *defines, *NATIVE.glob("*.c"), *sources, *objects, "-o", out, "-lpthread", "-lm"], check=True)
    return out


def test_no_line_is_longer_than_120_columns():
    sources = [path for folder in (NATIVE, CHECK.parent) for path in folder.rglob("*.[ch]")]
    long = [f"{path}:{n}" for path in sources for n, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 120]
    assert len(sources) > 20 and not long


@pytest.mark.slow
def test_newer_instructions_in_plain_c(tmp_path):
    """Tiers that this processor may not run: missing instructions are emulated in C, and every memory access is checked."""
    compiler = shutil.which("gcc")
    if not compiler or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("no GCC on x86 here: AVX-512 and AMX are not tried")
    plain = ["-mavx2", "-mfma", "-include", CHECK.with_name("emulated.h"), "-Wno-unused-function"]
    tiers = {"portable": [], **dict.fromkeys(("avxvnni", "avx512", "amx"), plain)}
    watched = "-fsanitize=address,undefined"
    program = built(tmp_path / "check", compiler, tiers, "-O1", watched, "-fno-sanitize-recover=all")
    assert checked(program) == "".join(f"{tier}: correct\n" for tier in ("amx", "avx512", "avxvnni", "portable"))


def test_a_tier_that_multiplies_wrongly_is_not_used(tmp_path):
    compiler = shutil.which("gcc")
    if not compiler or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("no GCC on x86 here: AVX-512 is not tried")
    wrong = tmp_path / "wrong.h"
    wrong.write_text(
        f'#include "{CHECK.with_name("emulated.h")}"\n#undef _mm512_and_si512\n#define _mm512_and_si512 e_add_32\n'
    )
    plain = ["-mavx2", "-mfma", "-include", wrong, "-Wno-unused-function"]
    program = built(tmp_path / "check", compiler, {"portable": [], "avx512": plain}, "-O1")
    assert checked(program) == "portable: correct\n"


def checked(*command):
    finished = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_on_arm_by_an_emulator(tmp_path):
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if not compiler or not emulator:
        pytest.skip(
            "no aarch64-linux-gnu-gcc and qemu-aarch64 here (Debian: gcc-aarch64-linux-gnu, qemu-user): ARM is not tested"
        )
    program = built(tmp_path / "check", compiler, ARM, "-O2", "-static")
    assert checked(emulator, "-cpu", "max", program) == "neon: correct\nportable: correct\n"
    assert checked(emulator, "-cpu", "cortex-a53", program) == "portable: correct\n"


@pytest.mark.slow
@pytest.mark.parametrize("which", ["address,undefined", "thread"])
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="sanitizers are tried on x86")
def test_with_sanitizers(which, tmp_path):
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler here: sanitizers are not tried")
    program = built(tmp_path / "check", compiler, X86, "-O1", "-g", f"-fsanitize={which}", "-fno-sanitize-recover=all")
    plainly = [setarch, "-R"] if (setarch := shutil.which("setarch")) else []  # the thread sanitizer needs fixed addresses
    assert "portable: correct\n" in checked(*plainly, program)
