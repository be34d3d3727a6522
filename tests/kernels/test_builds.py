"""Builds for other processors, run by an emulator, and builds with sanitizers: where the compilers for them are at hand."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import bitstill

ROOT = Path(bitstill.__file__).parents[2]
NATIVE = ROOT / "src" / "bitstill" / "kernels" / "native"
FLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math"]
ARM, X86 = ({"portable": [], "neon": ["-march=armv8.2-a+dotprod"]}, {"portable": [], "avx2": ["-mavx2", "-mfma"]})


def built(folder, compiler, tiers, *flags):
    """The check, with the library's sources, for one processor."""
    objects = []
    for tier, own in tiers.items():
        objects.append(str(folder / f"{tier}.o"))
        defines = [f"-DTIER={tier}", f'-DTIER_FILE="tier_{tier}.h"', f"-I{NATIVE}"]
        subprocess.run([compiler, *FLAGS, *flags, *own, *defines, "-c", NATIVE / "compute.c", "-o", objects[-1]], check=True)
    sources = [NATIVE / "runtime.c", NATIVE / "team.c", Path(__file__).with_name("check.c")]
    processor = "-DBS_ARM" if "neon" in tiers else "-DBS_X86"
    command = [
        compiler,
        *FLAGS,
        *flags,
        processor,
        f"-I{NATIVE}",
        *sources,
        *objects,
        "-o",
        folder / "check",
        "-lpthread",
        "-lm",
    ]
    subprocess.run(list(map(str, command)), check=True)
    return folder / "check"


def checked(*command):
    found = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_on_arm_by_an_emulator(tmp_path):
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if not compiler or not emulator:
        pytest.skip(
            "no aarch64-linux-gnu-gcc and qemu-aarch64 here (Debian: gcc-aarch64-linux-gnu, qemu-user): ARM is not tested"
        )
    program = built(tmp_path, compiler, ARM, "-O2", "-static")
    assert checked(emulator, "-cpu", "max", program) == "neon: as it should be\nportable: as it should be\n"
    assert checked(emulator, "-cpu", "cortex-a53", program) == "portable: as it should be\n"


@pytest.mark.parametrize("which", ["address,undefined", "thread"])
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="sanitizers are tried on x86")
def test_with_sanitizers(which, tmp_path):
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler here: sanitizers are not tried")
    program = built(tmp_path, compiler, X86, "-O1", "-g", f"-fsanitize={which}", "-fno-sanitize-recover=all")
    plainly = [setarch, "-R"] if (setarch := shutil.which("setarch")) else []  # threads are watched at fixed addresses alone
    assert "portable: as it should be\n" in checked(*plainly, program)
