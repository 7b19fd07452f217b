"""moebench as a library: what a notebook or script needs, offered by ``bench`` itself (``from bench import compress``)."""
