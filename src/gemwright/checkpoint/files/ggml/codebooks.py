"""Decoders of ggml's encodings whose values come from a codebook.

The IQ4 and FP4 encodings look up one value at a time; the IQ1, IQ2 and IQ3 encodings four or eight, from a grid of
vectors, and the IQ2 and IQ3 grids hold magnitudes, whose signs are stored separately.

Source: ggml-org/llama.cpp ggml/src/ggml-common.h (tables), ggml/src/ggml-quants.c (equations).
"""

import base64
import functools
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemwright.checkpoint.files.ggml.decoders import Blocks, Decoder, as_float, scale, unpack

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
FP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""Twice the values of a float with one sign, two exponent and one mantissa bit."""


class Grid(NamedTuple):
    """A set of vectors in ascending order of their digits, the first digit counting least.

    Attributes:
        values: The value of each digit.
        width: Number of digits of a vector.
        members: A bit per possible vector, set for those of the grid: little-endian, deflated, base 85.
    """

    values: tuple[int, ...]
    width: int
    members: str


@functools.cache
def _grid(name: str) -> NDArray[Any]:
    """Return a grid as an array of unsigned integers whose bytes are the values of a vector."""
    values, width, members = GRIDS[name]
    bits = np.frombuffer(zlib.decompress(base64.b85decode(members)), np.uint8)
    numbers = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
    digits = numbers[:, None] // len(values) ** np.arange(width) % len(values)
    return np.array(values, np.int8)[digits].view(f"<u{width}")[:, 0]


def _look_up(grid: str, index: NDArray[Any]) -> NDArray[np.int8]:
    """Return the vectors of a grid, joined: `(n, vectors)` -> `(n, values)`."""
    return _grid(grid).take(index).view(np.int8)


def _as_signs(bits: NDArray[Any]) -> NDArray[np.uint64]:
    """Return integers whose bytes are -1 for set bits and else 1."""
    return np.where(np.unpackbits(bits[:, None], axis=1, bitorder="little"), -1, 1).astype(np.int8).view("<u8")[:, 0]


_BYTES = np.arange(256, dtype=np.uint8)
_SIGNS = _as_signs(_BYTES)
_PARITY = np.bitwise_count(_BYTES[:128]) % 2
_EVEN_SIGNS = _as_signs(_BYTES[:128] | _PARITY << 7)
"""Signs by seven bits: the eighth makes the number of negative signs even."""


def _even_signs(packed: NDArray[np.uint32]) -> NDArray[np.int8]:
    """Unpack four times seven bits of signs: `(n, groups)` -> `(n, values)`."""
    index = packed[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & 127
    return _EVEN_SIGNS.take(index.reshape(len(packed), -1)).view(np.int8)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Split bytes into nibbles, low ones first: `(n, bytes)` -> `(n, 2 * bytes)`."""
    return unpack(packed[:, :, None], 4).reshape(len(packed), -1)


def _iq1_s(b: Blocks, out: NDArray[np.float32]) -> None:
    fields = b["qh"][:, :, None] >> np.array([0, 3, 6, 9, 12], np.uint16)
    high = (fields[:, :, :4] & 7).reshape(len(b), -1)
    q = _look_up("IQ1_S", high << 8 | b["qs"]).reshape(-1, 8, 32)
    q = q + np.where(b["qh"] >> 15, -1, 1).astype(np.int8)[:, :, None]
    scales = (2 * (fields[:, :, 4] & 7) + 1).astype(np.float32)
    scale(q, as_float(b["d"]) * scales / np.float32(8), None, out)


def _iq1_m(b: Blocks, out: NDArray[np.float32]) -> None:
    """The high nibbles of the scales are those of the block's scale."""
    d = np.bitwise_or.reduce(b["scales"] >> 12 << np.array([0, 4, 8, 12], np.uint16), axis=1).view(np.float16)
    scales = b["scales"][:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    high = _nibbles(b["qh"])
    q = _look_up("IQ1_S", (high & 7).astype(np.uint16) << 8 | b["qs"]).reshape(-1, 32, 8)
    q = q + np.where(high & 8, -1, 1).astype(np.int8)[:, :, None]
    scales = (2 * scales.reshape(len(b), -1) + 1).astype(np.float32)
    scale(q, as_float(d) * scales / np.float32(8), None, out)


def _iq2_xxs(b: Blocks, out: NDArray[np.float32]) -> None:
    packed = b["groups"]["signs"]
    d = as_float(b["d"]) * ((packed >> 28).astype(np.float32) + np.float32(0.5)) * np.float32(0.25)
    scale(_look_up("IQ2_XXS", b["groups"]["qs"].reshape(len(b), -1)) * _even_signs(packed), d, None, out)


def _iq2_xs(b: Blocks, out: NDArray[np.float32]) -> None:
    signs = _EVEN_SIGNS.take(b["qs"] >> 9).view(np.int8)
    scale(_look_up("IQ2_XS", b["qs"] & 511) * signs, _sixteenths(b), None, out)


def _iq2_s(b: Blocks, out: NDArray[np.float32]) -> None:
    high = unpack(b["qh"][:, :, None], 2).reshape(len(b), -1)
    signs = _SIGNS.take(b["signs"]).view(np.int8)
    scale(_look_up("IQ2_S", high.astype(np.uint16) << 8 | b["qs"]) * signs, _sixteenths(b), None, out)


def _sixteenths(b: Blocks) -> NDArray[Any]:
    """Return the scales of the sixteen sub-blocks of an IQ2_XS or IQ2_S block."""
    return as_float(b["d"]) * (_nibbles(b["scales"]).astype(np.float32) + np.float32(0.5)) * np.float32(0.25)


def _iq3_xxs(b: Blocks, out: NDArray[np.float32]) -> None:
    packed = b["signs"]
    d = as_float(b["d"]) * ((packed >> 28).astype(np.float32) + np.float32(0.5)) * np.float32(0.5)
    scale(_look_up("IQ3_XXS", b["qs"]) * _even_signs(packed), d, None, out)


def _iq3_s(b: Blocks, out: NDArray[np.float32]) -> None:
    high = unpack(b["qh"][:, :, None], 1).reshape(len(b), -1)
    signs = _SIGNS.take(b["signs"]).view(np.int8)
    q = _look_up("IQ3_S", high.astype(np.uint16) << 8 | b["qs"]) * signs
    scale(q, as_float(b["d"]) * (2 * _nibbles(b["scales"]) + 1).astype(np.float32), None, out)


def _iq4_nl(b: Blocks, out: NDArray[np.float32]) -> None:
    scale(IQ4_VALUES.take(unpack(b["qs"][:, None], 4)), as_float(b["d"]), None, out)


def _iq4_xs(b: Blocks, out: NDArray[np.float32]) -> None:
    high = (b["scales_h"][:, None] >> np.arange(0, 16, 2, np.uint16) & 3).astype(np.uint8)
    scales = (high << 4 | _nibbles(b["scales_l"])).view(np.int8) - np.int8(32)
    scale(IQ4_VALUES.take(unpack(b["qs"].reshape(-1, 8, 16), 4)), as_float(b["d"]) * scales, None, out)


def _mxfp4(b: Blocks, out: NDArray[np.float32]) -> None:
    """The scale is a power of two with an 8-bit exponent; half of it, because the values are doubled."""
    d = np.ldexp(np.float32(1), b["e"].astype(np.int32) - 128).astype(np.float32)
    scale(FP4_VALUES.take(unpack(b["qs"][:, None], 4)), d[:, None], None, out)


def _nvfp4(b: Blocks, out: NDArray[np.float32]) -> None:
    scale(FP4_VALUES.take(unpack(b["qs"].reshape(-1, 4, 8), 4)), _E4M3_HALVES.take(b["d"]), None, out)


def _halves_of_e4m3() -> NDArray[np.float32]:
    """Return half the value of each float with four exponent and three mantissa bits; the sign bit is ignored."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)) / 2
    return np.where(bits == 0x7F, 0, values).astype(np.float32)  # NaN counts as 0


_E4M3_HALVES = _halves_of_e4m3()

DECODERS: dict[str, Decoder] = {
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ3_XXS": _iq3_xxs,
    "IQ1_S": _iq1_s,
    "IQ4_NL": _iq4_nl,
    "IQ3_S": _iq3_s,
    "IQ2_S": _iq2_s,
    "IQ4_XS": _iq4_xs,
    "IQ1_M": _iq1_m,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
}
"""Functions that write the values of `(n,)` blocks to an `(n, elements)` float32 array, by encoding."""

GRIDS = {
    "IQ1_S": Grid((-8, 0, 8), 8, (
        "c-k#eK}(!R7=CxE;dM-9V?RN1diSfb(^(PgE$L;EU0C#DLh=VZ*|bQ>IZZw%yXlwN6ha`hG?#HO$v6$G@ldv(umMk2dT8mb2WdTox*h^v8Vt"
        "nDuD#8?@Vw9Syw7v(LR2?w<}y}3b9YJG^C&5*&qs>Nl?x;NhAB!%0hRecnsm$a2YwJ@;QqccSPG~@n#@N5uBY$^gNY22s7}?HYgoxmY#Y+!A"
        "jh1yxWA4l1OzVO1-XRyWBes^wA;LAoBq<x!%nuPhFWp9`{&R@7DG%<XIwD^Is3Q$Jf@<B<<hd(0^?jzIHG8vQn*?-$Ub(LsHW&@kYNcQ%|}d"
        "P%c;av8KJU^mWiJv*28-WD<$YEG%#}+D!ES;XeDuFD(VlG#i@A4$V;H%7rH52w&LB_pg1xSvl=L<CZ@9?{WdkSxbxSuMq|l64F4MqT|O(RS}"
        "O@H(bLXvHn!_OntvSw2GXTKiD_6XGLxujp0!)qyF+V=7Bv?g3oFy??D1-6?{(2le%HQrc>Le(m#@Cb_P%)g$;r#{<KcsUbe#9?p_<1{H>jE?"
        "+1SCIq;Fwj@yPMjA_U90?}vdY$)D1%>fQq-z{36HBT$I&mG*v%J#A~V%aSj@pZtCEAg}V1eou`2@uUxU_YQ=)6;l3U7EjmAKr#y2F0kdO91c"
        "}@u6ikZ68>90+)KINV7E3oVy0wcNC7Qg*Gnz$6Ckekcj5w;yQl$8BcV}uIeIA*;9XR~L2uzcrHYS+2)y-rqrtcg6e{stpn$cM#il(dTBx(R&"
        "0u-;P1DmAvG}u@dX;b%ns9v~6p49X^c}lqEMlIFjzJBbrp$X4T{{D_p5YV7e^~xM<^E7<_56qcAaL=FI+lT|4v2#Y&dpW2-Egd@Fdf5G@Dhe"
        "eu*|v(bMFD;1sQ1"
    )),
    "IQ2_XXS": Grid((8, 25, 43), 8, (
        "c-nPRORB^$43oj#tB`je2YP^R=KfcCw)5@K5e=lV<VbEmf91ogR%p3E0BR^O#16P=^@J3)+t0mx___f>P^zDolEn6;is&dxI!#Zg_{KuzkVd"
        "4Mw`?l*l~*(z5~c8Qj-!-YZym34v`$TQ4<4*~)dpL;rq|+W4irx`d$&)6^vGb7UkLBrzcFbHqcf>sMFwRxr;MTG;*}m%Qlby-@@TSk)X7om@"
        "@#uKQIjUUWQ&$2&y}*gX5TV=Bc|Cuh1wL(2Kn3A3Yj<N%;gblzhT7_jxp@MF=lA5st5R^Hl2J=^JV`E{Z0D^#$6R7"
    )),
    "IQ2_XS": Grid((8, 25, 43), 8, (
        "c-mc2TdsvL2pkgnkBRPwCicH3cK=&BJX-bM<{ZTW!^|+oxJIi-qkD|rsuaR~iB<*?x~C4>8J0pJW<V>X*vo#SY&(-c)w(<-fCU6QVt|)*=>o"
        "J=N8h~B3mmYKBw*Y)Ca<s*uvOak7T*la5<g=kAh?T96(5+bR(Mt@J=L5^n!u1sF+~=p=RjVCGbM+vDH*59tF!>kC`)-u3GzO}jM8X_r-*1yt"
        "ubG*&a^iqGs?p-do}D8x2NWXU?%O)=7t88q040RdJ=Ak)9T+$YBcFD31^6BC_W+mG1}iEA-T}Oj@u6-pQ1yByIl9%`W3mW#F%j~<yh(N0zSL"
        "~oH^Zy%}}tQx4=M73#xoc?jNErTmD?iDs40;(&MG>YYMNuDE=SK;cc#9vM%q_=>7msuqjC"
    )),
    "IQ2_S": Grid((8, 25, 43), 8, (
        "c-n1JU5W-F3~NE(E9iYHjPDBe{#V(wI=kPpE5rQ7#3X8F%Z9aF@G^(h-0EI3Em0|W3^QwctZ7zp0a8G#rYWS&oF&YfEj@sgh^u5FBBgC>LAk"
        "BEEtarKv-X}c)kMD5E9g)N*35uFS6j&;COQ!QC2=T0oAzp}=fs8f?3xctXeG?g^dQAA!2(KVP=j1x!<Qgx@l7F)Pu!TMd$m>{ZzEray(N$Az"
        "Rb24)#*U9zYZZF^+2!@EVQ9?ARiEH!J<ErE8usn4?()-BQhW*1pE<<S|Z6aT82aQO}QP4+el6zUY~*z7~Sl6pK?p!Q_DMIhH4w7?joIO9P^#"
        "Dw9CRS7mu8OBC|vDii4FoWN_zK9m?6y$}qXC*pyH_2f!)+bXep&HXz~CYasM7Fd3(JhmM~KIbkHJ7yU4;E692~{FNElHOf~Fzm+TBn!W(Jyj"
        "C6"
    )),
    "IQ3_XXS": Grid((4, 12, 20, 28, 36, 44, 52, 62), 4, (
        "c-l=-F%H5o3_M%0RAmZ7_lgPeigaLyA4Q!IuVCbv_?)J2Rn;aw-<^~BWtxCXwzFx0%xW)eST<YW5KL&L;j#hAAHoX-c)&}FY<X@1m|7IGsjr"
        "X>q7@bAuHrcP3L2_`6x)_>^v5;&o?@Fdagv_Uo9H*utGOGEJ93R6P|L2rgx{U}Y-UnrS3sKYtPIbF!WdDS7|dsT<9UQCqzhJe8+4kK5km%Xv"
        "Hjm=J(sMgqk-e3v^zjTJayVggoDWMJzTWE4a0T)3l-9P!ydlNePrBA?Xny*@kmBo4W|8$?wEo20v5Uy_5"
    )),
    "IQ3_S": Grid((1, 3, 5, 7, 9, 11, 13, 15), 4, (
        "c-k#d!AiqG5PdVu!e&pqA>uXNMyUCUt<-~hDT4SrX{pfmmf{D9Rs{Q#&TgE;z`Qr}-rMBob#A|%IbF{W(Id*&Lkwq!%0~0(%@Ao{OU0lD_x2"
        "OXCI^OquXIKLt}o^pYnG?L6&oz+9HeSVPSrN(A}t!YmF^Xmp*3Qy-5G8(e|b5Y-VC?q(AA>+32wuC)HmEXp@c1}PT|h83}iuXSwt^ePGkv?U"
        "+Lf3a_=1ov?9@{igP&9v4ypFswx3&TJZ@M2_=SuX>*z&qp%+CoXl)ge8!drA@5Agyn!FG+()?*sDei}n1QT95(J|p-wR7#Aht{0!Hx!aZfy;"
        "cl!bD4D3uqR(zW`GY5;6>@R{_|3X$jRqNR^eu)^e<Ll^vCYlKPU1;QQ+o$IB(hKom+bHx0SXmXXwyZnVo8~6jd#wQ>"
    )),
}  # fmt: skip
