"""Names of the Atari games that ale-py plays; no emulator is started for them."""

from __future__ import annotations

import functools

NAMESPACE = "ALE/"  # Gymnasium's spelling
# Cartridges without a game for one player; ale-py registers no environment for them either.
TWO_PLAYER_ONLY = frozenset({"combat", "joust", "maze_craze", "warlords"})


@functools.cache
def game_names() -> dict[str, str]:
    """Return every game: its name in CamelCase (``BeamRider``) by its cartridge in snake_case (``beam_rider``)."""
    from ale_py import roms  # a third of a second, which other environments need not wait for

    return {rom: rom.title().replace("_", "") for rom in roms.get_all_rom_ids() if rom not in TWO_PLAYER_ONLY}


def find_game(env_id: str) -> str | None:
    """Return the cartridge that ``BeamRider``, ``beam_rider`` or ``ALE/BeamRider-v5`` names, None for other ids."""
    if "-" in env_id and not env_id.startswith(NAMESPACE):
        return None
    name = env_id.removeprefix(NAMESPACE).removesuffix("-v5")
    return next((rom for rom, camel in game_names().items() if name in (rom, camel)), None)
