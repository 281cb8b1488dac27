"""dm-verity and fs-verity against the recorded answers of veritysetup 2.6.1 and fsverity 1.5."""

from __future__ import annotations

import io

import pytest

from lamina.block.verity import VerityOptions, dm_verity, fs_verity
from lamina.errors import FormatError, UsageError

COUNTS = (1, 2, 127, 128, 129, 16384, 16389)
SALTS = (0, 16, 32)
MIB = 1 << 20


def pattern(size_bytes: int) -> bytes:
    block = bytes((i * 7 + i // 251) & 0xFF for i in range(4099))
    return (block * (size_bytes // len(block) + 1))[:size_bytes]


def options(size: int, salt_bytes: int, **more: object) -> VerityOptions:
    return VerityOptions("sha256", size, size, bytes(range(salt_bytes)), **more)  # type: ignore[arg-type]


# (blocks, block size, salt size, version) and the root digest.
RECORDED: dict[tuple[int, int, int, int], str] = {
    (1, 512, 0, 1): "db3003c1b702037197f460919f0973cc6159472e9346cf8d990a62443054525e",
    (1, 512, 16, 1): "e6b48fc9c720a668cd68e4f1506fe1e17519a23f2b742ebbd387b6ea10c9a2f7",
    (1, 512, 32, 1): "399bf002be2e0564a68babe7b7ebc826f1372b77476691d620e5cf1fd2b7d0f4",
    (1, 1024, 0, 1): "02fb5322ef73ac36022788d2fd5e36e5f9c9ab03311d5c83dab1d877cc6d09d2",
    (1, 4096, 0, 1): "f9e18c560be5697b5376f69c47a1e30923a7ae047c9a6f747fcba904c0657628",
    (2, 512, 0, 1): "8d56de030ea9d86764fdda6f4b8ed65496389193ab529750377d2a68812230af",
    (2, 512, 16, 1): "df75f012338bc3c151a5efd8232bcb30e5dc0c590613f6e8b5322b08185fbf44",
    (2, 512, 32, 1): "f98d7c59636a4e572e19d69f7ec8aaa405c2aebe6b12478aa3c5180a6bf8a4e2",
    (2, 1024, 0, 1): "2b4ba5119421cbab98f03824a4970bcab9cac34863d59f584221f82efd171211",
    (2, 4096, 0, 1): "707277b22f677ad093ea724070f911119e3d118a0dba8ea1afd788bb94881d39",
    (127, 512, 0, 1): "8c5e0d597d8a5f39acbfe5111ca0a9637e8893af2d315e4a651b780c63b5c719",
    (127, 512, 16, 1): "9125eb2b70e2b7cb907b3db87f31209b356cc0991650f5494fb4aca5b4db0664",
    (127, 512, 32, 1): "fb910802c23a39bd02644a0e32dd97b0abde21876ee2c1f312cd3889833e2f45",
    (127, 1024, 0, 1): "20135d0cbe2058715a078cc53a8dfb7781e279223194912eae5e56a4facd044a",
    (127, 4096, 0, 1): "82555f5c776a1fe0221bea424794c0914f146567b7fa7e26c50dee3c0ef785b4",
    (128, 512, 0, 1): "c8eee807a0a6efabfd0137c94afbafafccf4263471c69d996b4f682aa4947a31",
    (128, 512, 16, 1): "d1bc3d70892db6057b1548ffbc67d0baed6b510b251f51e7efacac4542c517ab",
    (128, 512, 32, 1): "049f3ed8e5cb2d662d978302871d99bac8aee7a39af275d09aae7bfe19ca6f40",
    (128, 1024, 0, 1): "5a52e3e100c8894899b6c6aaa884b81ace3e7840de6339a4467fb75c941e2a65",
    (128, 4096, 0, 1): "104384736b4b27c9b5d057ed61ba21da46c5d500f9de9a868e68a187d612613f",
    (129, 512, 0, 1): "2f7286922a467cb137d2ee57c3ff55ccb6e458a6efd98a79ee60a0a0802ab4e9",
    (129, 512, 16, 0): "e05e01acf3e134353e1a8cddf655a10c883b687d49ef299fcd2943339007a618",
    (129, 512, 32, 1): "ea492aa12f1309a4ebcc773c396a80de7fc79cbddfc3cf7cfbd7d4cb1fc4ef71",
    (129, 1024, 0, 1): "b8da07c5a4b3b9ec0281b60d431b40a15b0f44baf55ef569cfab8d4b1a5e76b1",
    (129, 4096, 0, 1): "3c775b3f8b2d61f535f6cd883550c07c1cc17141179d6ef04976de1ad8f80b80",
    (16384, 512, 0, 1): "15b181af0663b9f550e35861f3ebc9743cbc11c4107b8668899fd6285d5b58bf",
    (16384, 512, 16, 1): "d01a36bf8b38476b0f1ad214fc25af2b9b47b41ea71341a5a74c85445be7d93b",
    (16384, 512, 32, 1): "7c383e5f48d67218330629032d79696d95a8373997f81d712c935b6d321c2bc2",
    (16384, 1024, 0, 1): "8783974ca93ad55d54fad938892edb60c53f6ebdef7091bcc6f92ca71b050b34",
    (16389, 512, 0, 1): "6daba225d456a9167c256e0191bb6cee02f6812d11a76c45825cc1284873d668",
    (16389, 512, 16, 1): "594e793edbfcca95b8c5546366204c3ef0ab902340f33aeb32795eb04a53b003",
    (16389, 512, 32, 1): "7a970a230880e0a62a950bc68f323745efe3089fd48d6f1d8639e4ff2337df8c",
}
# (bytes, algorithm, block size, salt size) and the first 32 bytes of the digest.
RECORDED_FILES: dict[tuple[int, str, int, int], str] = {
    (0, "sha256", 4096, 0): "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95",
    (0, "sha256", 4096, 32): "ef1dcdde9fe2d181de4cf3db2723b6d22ccc902a876f5bd405d050aa828af82a",
    (
        0,
        "sha512",
        4096,
        7,
    ): "d78eac4fcfeb582b5246a558d562519332fe5a633013e22d4f52409d61ecd8a0",
    (0, "sha256", 1024, 0): "f2cca36b9b1b7f07814e4284b10121809133e7cb9c4528c8f6846e85fc624ffa",
    (1, "sha256", 4096, 0): "b803429503d95915829b29fdbc8bbad142f3abfd11b1cadf5526582e685c0551",
    (1, "sha256", 4096, 32): "396fb1d86e80946888fc0635397f31e2a89525b12c4d528ab7c14e91e8822107",
    (
        1,
        "sha512",
        4096,
        7,
    ): "ebcee102f26cef3a9345f800c176ebcc7ff316cd6a034bc1da3eb171f610749a",
    (1, "sha256", 1024, 0): "564b7eb7ffda106d78a6b4aa080769012ec9a79ad64e0bff064211de3640fd52",
    (4095, "sha256", 4096, 0): "841acbc4d3c22ad5f67a748aab2d3e5a4d21de6879a73cb6ec235049dd94dc40",
    (4095, "sha256", 4096, 32): "815ba97f26bb487ab34b25c75f7cd881fcd5d20c255e5924bf3628f439868ec3",
    (
        4095,
        "sha512",
        4096,
        7,
    ): "e8c41e713b4a752f51a7944f9f1a942345e4a1857ee40b541f64a4b784217d50",
    (4095, "sha256", 1024, 0): "32ac4bc3c1e52c4b1c181d7dbba09bb98402e3a4a47ed5437006fb08015fd91e",
    (4096, "sha256", 4096, 0): "2b41866549a2f4f4a80ebbb30aa8d8436ce675229143bf493d8dc6fce99081a0",
    (4096, "sha256", 4096, 32): "fbfe325aa82f5a8f7b415b3d4b9a559281959076efeb20ca79f62dad0931551b",
    (
        4096,
        "sha512",
        4096,
        7,
    ): "8b0e0ca88720a2083002333b048788455da5136be8fb659a08db351d29088770",
    (4096, "sha256", 1024, 0): "ce3e278b897979f5874ffc43a294d51475bfa5e199762969798250120c81d10a",
    (4097, "sha256", 4096, 0): "2492558cab5973a8b471d3a517cf3fc8ae04bffa6083e7d443e7839b65d94651",
    (4097, "sha256", 4096, 32): "e87325757734e2cd0e818b26aa935e13f11c922378bce2d907ff11651e25a27c",
    (
        4097,
        "sha512",
        4096,
        7,
    ): "be7bb510956c9735e0ee9f6052aca04e61f0cf00b11ba3357de6fed83b11a4f8",
    (4097, "sha256", 1024, 0): "56ec56b7949449d0487e6eb56e84a885d627faf9592a7a171f10afea0eb58fb8",
    (524288, "sha256", 4096, 0): "cbbd7727c0a805e165be1f01edd7c6e99001ea3ab2adf3fa58e3e1524acdb998",
    (
        524288,
        "sha256",
        4096,
        32,
    ): "ee39945707952031a599abe01adc15ab3305398c82f6d06d6fe5d089eebdda1d",
    (
        524288,
        "sha512",
        4096,
        7,
    ): "8e5a704d06460db1c488ade248fad5e4e542ac25ab7d16391949965c50dabd73",
    (524288, "sha256", 1024, 0): "fa669a56a6c60be09c3b7aa5e06ebe6c9b8ee3c8a2d7d53fd44aaff17b6d4fbc",
    (528384, "sha256", 4096, 0): "6fbb6d1a45f93307d9d7e9fe5b9def4d9ed30f0c4b5ed79d8096dc52cfc36e4e",
    (
        528384,
        "sha256",
        4096,
        32,
    ): "76e158e1e80d67ac47030f34382ccc20ff285caa18ac46de273d438e28064035",
    (
        528384,
        "sha512",
        4096,
        7,
    ): "41bbfea8abae1c2dcbcef688cb571c6b88267f15a908d1eb9a9d5ab86743e9fb",
    (528384, "sha256", 1024, 0): "9585c037797d17df6fd8e4bb2c6e1c2e62c4630f5314f54286e93af4c572cf0b",
    (
        67108865,
        "sha256",
        4096,
        0,
    ): "deb3a21b001007e429f8a6481645d12601c582595fba6c4fd17b6d3bf7e2f231",
}
SIZES = (0, 1, 4095, 4096, 4097, 128 * 4096, 129 * 4096, 64 * MIB + 1)


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_recorded_roots(case: tuple[int, int, int, int]) -> None:
    count, size, salt_bytes, version = case
    found = dm_verity(io.BytesIO(pattern(count * size)), options(size, salt_bytes, version=version))
    assert found.root.hex() == RECORDED[case]
    assert found.data_blocks == count


@pytest.mark.parametrize("case", RECORDED_FILES, ids=str)
def test_recorded_files(case: tuple[int, str, int, int]) -> None:
    size, algorithm, block, salt_bytes = case
    found = fs_verity(io.BytesIO(pattern(size)), algorithm, block, bytes(range(salt_bytes)))
    assert found.hex()[:64] == RECORDED_FILES[case]


def test_every_byte_counts() -> None:
    data = pattern(129 * 512)
    good = dm_verity(io.BytesIO(data), options(512, 0))
    for position in (0, 511, 512, 128 * 512, len(data) - 1):
        changed = bytearray(data)
        changed[position] ^= 1
        assert dm_verity(io.BytesIO(changed), options(512, 0)).root != good.root
        assert fs_verity(io.BytesIO(changed)) != fs_verity(io.BytesIO(data))
    assert fs_verity(io.BytesIO(data + b"\0")) != fs_verity(io.BytesIO(data))


def test_what_is_no_input() -> None:
    for data in (b"", b"x" * 4097):
        with pytest.raises(FormatError):
            dm_verity(io.BytesIO(data))
    for wrong in ({"data_block_bytes": 500}, {"hash_block_bytes": 1 << 20}, {"version": 2},
                  {"algorithm": "md5"}, {"salt": bytes(257)}):  # fmt: skip
        with pytest.raises(UsageError):
            VerityOptions(**wrong)  # type: ignore[arg-type]
    for arguments in (("md5",), ("sha256", 1000), ("sha256", 512), ("sha256", 4096, bytes(33))):
        with pytest.raises(UsageError):
            fs_verity(io.BytesIO(b""), *arguments)  # type: ignore[arg-type]
