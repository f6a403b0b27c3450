"""Which files are pictures, by their names and by their first bytes, and which of those are read."""

from __future__ import annotations

import functools
import os

from PIL import Image

# What pictures come in that Pillow opens by itself, with the extensions of each. Pillow knows dozens more, and some of
# those decoders are old or start other programs, such as Ghostscript: nothing to let millions of unknown files choose.
_FORMATS = {
    "JPEG": "jpg jpeg jpe jfif jif jfi pjpeg pjp mpo",
    "PNG": "png apng",
    "WEBP": "webp",
    "GIF": "gif",
    "TIFF": "tif tiff",
    "BMP": "bmp",
    "AVIF": "avif avifs",
    "JPEG2000": "jp2 j2k j2c jpc jpf jpx",
    "PPM": "ppm pgm pbm pnm pfm",
    "DIB": "dib",
    "DDS": "dds",
    "ICNS": "icns",
    "ICO": "ico",
    "PCX": "pcx",
    "PSD": "psd",
    "QOI": "qoi",
    "SGI": "sgi rgb rgba bw",
    "TGA": "tga icb vda vst",
    "HEIF": "heic heif hif heics heifs",
}
# Pictures too, to most people; camera raws among them, of which Pillow would read the small preview as a TIFF.
_NOT_READ_NAMES = """
svg svgz eps ps ai wmf emf jxl jxr wdp hdp bpg jls exr hdr psb xcf kra xbm xpm msp ras sun im fits cur fli flc blp
dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw x3f 3fr iiq erf mef mos mrw rwl dcr kdc
"""
_NOT_READ = frozenset(_NOT_READ_NAMES.split())
IMAGE_EXTENSIONS = frozenset(" ".join(_FORMATS.values()).split())

# What lies beside pictures in data sets. Such files are not opened to see what they are; all others are.
_OTHER_NAMES = """
txt caption json jsonl csv tsv md npy npz pt pth safetensors bin tar zip gz parquet yaml yml xml html py log cls
mp4 mov avi mkv webm wav mp3
"""
NO_PICTURES = frozenset(_OTHER_NAMES.split())
# First bytes that tell the format.
HEAD = 16

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_TGA_END = b"TRUEVISION-XFILE.\0"


def extension(name: str) -> str:
    """In lower case, without the dot; "" of none."""
    return os.path.splitext(name)[1][1:].lower()


def is_image(name: str) -> bool:
    """Whether a file's name says that it is a picture, be it one that is read or not."""
    return extension(name) in IMAGE_EXTENSIONS | _NOT_READ


def why_not_read(name: str) -> str | None:
    """What to say of a picture whose name tells that it cannot be read, else None."""
    found = extension(name)
    return f"a .{found} file, which is not read; save the picture as PNG or JPEG" if found in _NOT_READ else None


def begins_like_a_picture(head: bytes) -> bool:
    """Whether the first HEAD bytes of a file are those of a picture that is read."""
    return is_heif(head) or any(_accepts(name, head) for name in formats())


@functools.cache
def formats() -> tuple[str, ...]:
    """Names, to Pillow, of the formats that can be read here. AVIF came with Pillow 11.3, HEIC comes with the package
    pillow-heif. TGA is not among them: it has no first bytes of its own."""
    Image.init()
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN and name != "TGA")


def formats_of(data: bytes) -> tuple[str, ...]:
    """`formats()`, and TGA where a file ends as those of the format's second version do."""
    return (*formats(), "TGA") if data.endswith(_TGA_END) else formats()


def is_recognised(data: bytes) -> bool:
    """Whether a file begins like one of the formats that are read, or ends so."""
    return data.endswith(_TGA_END) or any(_accepts(name, data[:HEAD]) for name in formats())


def extension_of(data: bytes) -> str:
    """The usual extension of a picture that is read, by its first bytes."""
    found = (name for name in formats() if _accepts(name, data[:HEAD]))
    return _FORMATS[next(found, "TGA")].split()[0]


def is_heif(head: bytes) -> bool:
    """Whether a file is HEIC or HEIF, or AVIF of one of the brands that the two share."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def _accepts(name: str, head: bytes) -> bool:
    accept = Image.OPEN[name][1]
    try:
        if accept is None or not accept(head):
            return False
    except Exception:  # Of fewer bytes than it looks at.
        return False
    return name != "PPM" or head[2:3].isspace()  # Else every file whose first word is "Python" is one.
