"""The voice of the docstrings: each must be understood by someone who has not read the name above it.

A function's docstring begins with a verb in the imperative ("Return ...", "Check ..."). A class is a noun:
its docstring begins with an article or a noun ("A ...", "The ...", "Rows of ..."), and so may a property's.
A module's says what is in the file. Each has at least four words. Attribute docstrings (strings below an
assignment) are exempt, and so is a private function without a docstring.
"""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "sae_dist"
MODULES = sorted(PACKAGE.rglob("*.py"))
FEWEST_WORDS = 4
VERBS = frozenset(
    """
    Accept Accumulate Act Add Adopt Advance Agree All-gather All-reduce Allocate Allow Announce Answer
    Append Apply Approximate Arrange Ask Assemble Assert Assign Attach Average Backpropagate Begin Bind
    Block Broadcast Build Cache Call Cancel Capture Cast Catch Centre Change Check Choose Clamp Clear Clip
    Clone Close Collect Combine Compare Compile Complain Complete Compose Compress Compute Concatenate
    Configure Connect Continue Convert Copy Correct Count Cover Create Cut Deal Decay Decide Decode
    Decompress Decrement Delete Derive Describe Detach Detect Determine Differentiate Discard Dispatch
    Display Distribute Divide Do Download Draw Drive Drop Dump Embed Empty Encode End Enter Escape
    Estimate Evaluate Exchange Execute Exit Expand Explain Export Express Extend Extract Fail Feed Fetch
    Fill Filter Find Finish Fit Flatten Flush Fold Follow Forget Format Freeze Gather Generate Get Give
    Grant Group Guess Halt Handle Harvest Hash Have Hold Ignore Import Include Increment Index Infer
    Initialise Insert Install Interleave Interpolate Invert Iterate Join Keep Label Launch Lay Leave Let
    Limit Link List Load Locate Lock Log Look Lower Make Map Mark Mask Match Measure Merge Minimise Mix
    Move Multiply Name Normalise Note Notify Observe Offer Open Order Overwrite Pack Pad Parse Partition
    Pass Pause Perform Permute Pick Place Plan Plot Point Pool Post Predict Prefix Prepare Print Probe
    Process Produce Profile Project Propose Prove Publish Pull Push Put Queue Quote Raise Rank Reach Read
    Receive Recommend Record Reduce Reduce-scatter Refine Refuse Register Reject Release Remember Remove
    Rename Render Repeat Replace Replay Report Represent Request Require Rescale Reset Resolve Restart
    Restore Resume Return Reverse Reword Rewrite Roll Rotate Round Run Sample Save Say Scale Scan Scatter
    Schedule Score Search See Select Send Separate Serve Set Share Shift Shorten Show Shrink Shuffle Shut
    Sign Simulate Skip Sleep Slice Snap Solve Sort Spawn Splice Split Stack Start State Step Stop Store
    Stream Strip Submit Substitute Subtract Suggest Sum Summarise Support Swap Switch Synchronise Take
    Tell Terminate Test Time Tokenise Total Trace Track Train Transfer Translate Transpose Trim Truncate
    Try Tune Turn Undo Unpack Update Upload Use Validate Verify Visit Wait Walk Warm Warn Watch Wrap Write
    Yield Zero
    """.split()
)
NO_NOUN = frozenset(
    """
    About After Again Against Alike Along Already Also Always And Any As At Because Before Behind Below
    Beside Besides Between But By Can Does During Else For From Has How If In Inside Into Is It Its Just
    Later Likewise Never No None Nor Not Now Of Off On Once Only Or Otherwise Out Over Own Per Since So
    Such Than That Then There These They This Those Though To Together Too Under Unless Until Up Upon Was
    We What When Where Whether Which While Who Whoever Whom Whose Why With Within Without Yet You
    """.split()
)
RETIRED = {
    r"what others": "name what is meant",
    r"(stands?|stood) there": "is there, exists",
    r"(is|are|be|was|were) told": "is given, receives",
    r"(has|have|had) none": "say what is missing",
    r"of (ours|theirs)": "our own, the library's own",
    r"(is|are|was|were|be) said": "is reported, is printed",
    r"does not take|do not take": "does not accept, rejects",
    r"in vain": "without an answer",
}


def first_word(text: str) -> str:
    """Return the word that a docstring begins with, or "" if it begins with a sign."""
    found = re.match(r"[A-Za-z]+(-[a-z]+)?", text)
    return found.group() if found else ""


def is_property(node: ast.AST) -> bool:
    """Return whether a function is read like an attribute, so that a noun may describe it."""
    decorators = [ast.unparse(each) for each in getattr(node, "decorator_list", [])]
    return any(each.endswith(("property", ".getter")) for each in decorators)


def complaint(node: ast.AST, text: str) -> str | None:
    """Return what is wrong with the docstring of a module, a class or a function; None: nothing."""
    word = first_word(text)
    if len(text.split()) < FEWEST_WORDS:
        return f"has fewer than {FEWEST_WORDS} words"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_property(node):
        if word not in VERBS or re.match(r"[A-Za-z-]+ of\b", text):
            return "does not begin with a verb (if it does, add the verb to VERBS)"
    elif word in NO_NOUN or not word and not isinstance(node, ast.Module):
        return "does not begin with an article or a noun"
    elif isinstance(node, ast.ClassDef) and (word in VERBS or is_third_person(text)):
        return "begins with a verb; a class is a noun"
    for pattern, better in RETIRED.items():
        if found := re.search(rf"\b({pattern})\b", text, re.IGNORECASE):
            return f"says {found.group()!r}: {better}"
    return None


def is_third_person(text: str) -> bool:
    """Return whether a docstring begins like "Runs chunks ...", and not like "Runs of one command"."""
    word = first_word(text)
    singular = {word[:-1], word[:-2]} if word.endswith("s") else set()
    return bool(singular & VERBS) and not re.match(r"\w+ (of|that|which|and|in|on|with|from)\b", text)


def complaints(source: str) -> list[str]:
    """List the docstrings of a file that break a rule: name, rule and first line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            wrong = complaint(node, text) if text else None
            if text and wrong:
                found.append(f"{getattr(node, 'name', 'the module')} {wrong}: {text.splitlines()[0]}")
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_docstrings_are_understood_alone(module):
    assert complaints(module.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        '"""Files that last."""',
        '"""Of text, in local files."""',
        'def f():\n    """The step."""',
        'def f():\n    """Token ids of one example."""',
        'def f():\n    """Whether a key is there."""',
        'def f():\n    """Returns the ids of one example."""',
        'def f():\n    """Name of the folder of a run."""',
        'def f():\n    """`True` if the folder is complete."""',
        'class A:\n    """What a kind of source has to offer."""',
        'class A:\n    """Runs token chunks through the LLM."""',
        'class A:\n    """Open the files of a folder."""',
        'class A:\n    @property\n    def f(self):\n        """Of every place that is captured."""',
        'class A:\n    def f(self):\n        """Return the value, which is told to the other ranks."""',
        'def f():\n    """Return the layers.\n\n    Beside them stands what others have.\n    """',
    ],
)
def test_a_riddle_shows(source):
    assert len(complaints(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        '"""Text from token ids, token by token."""',
        "def _f():\n    return 1",
        'def f():\n    """Return the token ids of one example."""',
        'def f():\n    """All-gather the rows of each rank."""',
        'class A:\n    """Rows of one step, all replicas together."""',
        'class A:\n    """The tokenizer of the LLM."""\n    x = 1\n    """Why."""',
        'class A:\n    @property\n    def f(self):\n        """The widths of all hooks."""',
    ],
)
def test_plain_words_pass(source):
    assert complaints(source) == []
