"""Bodies of multipart/form-data: fields by name, a file among them."""

from __future__ import annotations

from email import policy
from email.parser import BytesParser
from typing import TypeVar

import msgspec
from msgspec import Struct

from vllm.entrypoints.serve.errors import HttpError
from vllm.errors import did_you_mean

_MAX_FIELDS = 64
Form = TypeVar("Form", bound=Struct)


def decode_form(raw: bytes, content_type: bytes, kind: type[Form], harmless: frozenset[str]) -> Form:
    """Return a form as a struct.  Fields that may come several times end in [].  Raises HttpError: 400.

    `harmless` are fields that are taken and change nothing.
    """
    head = b"MIME-Version: 1.0\r\nContent-Type: " + content_type + b"\r\n\r\n"
    message = BytesParser(policy=policy.HTTP).parsebytes(head + raw)
    if message.get_content_type() != "multipart/form-data" or not message.is_multipart():
        raise HttpError(400, "the body must be multipart/form-data, with the sound as its field 'file'", "file")
    known = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    values: dict[str, object] = {}
    for number, part in enumerate(message.iter_parts()):
        name = str(part.get_param("name", "", "content-disposition"))
        content = part.get_payload(decode=True)
        if number >= _MAX_FIELDS:
            raise HttpError(400, f"the form has more than {_MAX_FIELDS} fields")
        if name in harmless:
            continue
        if name not in known:
            raise HttpError(400, f"there is no field {name[:80]!r}.{did_you_mean(name, known)}", name[:80])
        assert isinstance(content, bytes)
        if name == "file":
            values[name] = content
            continue
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise HttpError(400, f"{name}: is not UTF-8", name) from None
        if name.endswith("[]"):
            listed = values.setdefault(name, [])
            assert isinstance(listed, list)
            listed.append(text)
        else:
            values[name] = text
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        field = str(error).rpartition("$.")[2].rstrip("`") if "$." in str(error) else None
        raise HttpError(400, str(error), field) from None
