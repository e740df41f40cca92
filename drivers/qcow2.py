"""The header of qcow2 images (https://www.qemu.org/docs/master/interop/qcow2.html)."""

from __future__ import annotations

import struct

from model.errors import ImageRefused

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQII")
_FEATURES = struct.Struct(">Q")
_LENGTH = struct.Struct(">I")
_EXTENSION = struct.Struct(">II")
VERSION_2, VERSION_3 = 2, 3
LENGTH_2, FEATURES_AT, LENGTH_AT = 72, 72, 100
#: Bits of incompatible features: the image is damaged; its data is in another file.
CORRUPT, EXTERNAL_DATA = 1 << 1, 1 << 2
#: Dirty, corrupt, external data, compression type, extended L2 entries.
KNOWN = 0b11111
EXTERNAL_DATA_NAME, END = 0x44415441, 0
LEAST_CLUSTER, MOST_CLUSTER = 9, 21


def check(head: bytes, most_bytes: int) -> None:
    """Judge an image by its first 512 bytes: it must need no other file. Raises ImageRefused."""
    if len(head) < LENGTH_AT + _LENGTH.size:
        raise ImageRefused("the qcow2 image is cut off")
    _, version, backing, _, cluster_bits, size, encryption, _ = _HEADER.unpack_from(head)
    if version not in (VERSION_2, VERSION_3):
        raise ImageRefused(f"qcow2 version {version} is not known")
    if backing:
        raise ImageRefused("the qcow2 image has a backing file: make it whole with 'qemu-img convert'")
    if encryption:
        raise ImageRefused("the qcow2 image is encrypted")
    if not LEAST_CLUSTER <= cluster_bits <= MOST_CLUSTER:
        raise ImageRefused(f"the qcow2 image has clusters of 2^{cluster_bits} bytes")
    if size > most_bytes:
        raise ImageRefused(f"the disk in the qcow2 image has {size} bytes, more than {most_bytes}")
    length = LENGTH_2
    if version == VERSION_3:
        (features,) = _FEATURES.unpack_from(head, FEATURES_AT)
        if features & EXTERNAL_DATA:
            raise ImageRefused("the qcow2 image keeps its data in another file")
        if features & CORRUPT or features & ~KNOWN:
            raise ImageRefused("the qcow2 image is damaged, or needs features that are not known")
        (length,) = _LENGTH.unpack_from(head, LENGTH_AT)
    while length + _EXTENSION.size <= len(head):
        kind, size = _EXTENSION.unpack_from(head, length)
        if kind == END:
            break
        if kind == EXTERNAL_DATA_NAME:
            raise ImageRefused("the qcow2 image keeps its data in another file")
        length += _EXTENSION.size + (size + 7) // 8 * 8
