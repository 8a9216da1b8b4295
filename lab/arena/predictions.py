"""What each row was expected to do against its control, written before any run that counts.

`+`: its harmonic mean of speed and fresh accuracy is higher by more than .02; `-`: lower; `0`:
neither. By world: v2, arena. Reasons stand where they are not those of the family.

Expected of the families. Distillation from the solution (OPSD, SDPO and all that weigh or change
its tokens) learns the manner of sure authors, which costs fresh accuracy in both worlds; weights
per token do no better than the same weights shuffled. GRPO and what multiplies its advantage keep
doubt. In v2 the hint says nothing about digits, so no teacher adds to GRPO there. In the arena the
contrast of a right and a wrong solution tells the fatal digit, so RLCSD, SIPO, CEPO and ours should
beat their controls there.
"""

EXPECTED = {  # row: (in v2, in the arena)
    "opsd": "00",  # against another problem's solution: the manner differs, too; unsure
    "sdpo": "00", "op2sd": "+0",  # its documents are written with doubt
    "trust_region": "00", "beta_opsd": "0+", "veto": "00", "purified": "+0", "credit": "00",
    "ogls_sd": "00", "avsd": "00", "rp_opsd": "00",
    "ours": "0+",  # v2: nothing to rank; arena: the contrast tells the fatal digit
    "opsd_clip": "--",  # turned round
    "bregman_clip": "--", "pw_opsd": "00", "iw_opd": "00", "tip": "00", "rosd": "00",
    "prefix": "-0",  # the first tokens decide on the manner
    "eopd": "00", "reopold": "00", "dash": "00", "pcsd": "00",
    "rlsd": "00", "rlrt": "0-", "rlcsd": "0+", "antisd": "-0", "sipo": "0+", "cepo": "0+",
    "distilled_rl": "00", "sdpg": "00", "dr_grpo": "00", "dapo": "++",
    "off_context_grpo": "-0", "srpo": "00", "sc_sdpo": "00", "ssopd": "00", "paced": "00",
    "correct_only": "0+", "cgtr": "00", "half_and_half": "-+",
    # Of the controls that have one themselves:
    "contrast": "++", "opsa": "00", "positive_only": "-0", "wrong_only": "00",
}
