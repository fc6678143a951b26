"""A folder to the Hugging Face hub."""

from __future__ import annotations

import shlex
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files import given
from light_llm.tokenizer.hub import reachable


def check_push(name: str) -> None:
    """Check what can be checked before anything is written.

    Raises:
        UserError: the name is not USER/NAME, or no token is stored here.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("it must be USER/NAME")
    except HFValidationError as error:
        raise UserError(f"--push={name}: is not the name of a model on the hub: {error}") from None
    if get_token() is None:
        raise UserError(
            f"--push={name} needs a token of Hugging Face; run `hf auth login`, or set HF_TOKEN"
        )


def push_folder(folder: Path, name: str) -> str:
    """Upload `folder` as the model `name`, which is made, private, unless it is there.

    Returns:
        Its address.

    Raises:
        UserError: the hub cannot be reached, or refuses. The folder is as it was.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    command = f"hf upload {name} {shlex.quote(str(folder))}"
    stays = f"{folder} is complete; upload it later with `{command}`"
    if not reachable():
        raise UserError(f"--push={name}: the hub cannot be reached; {stays}")
    disable_progress_bars()
    with given.foreign(lambda reason: f"--push={name}: {reason}; {stays}"):
        api = HfApi()
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Upload an export of light-llm"
        )
    return str(address)
