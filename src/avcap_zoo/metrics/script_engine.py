"""The JavaScript engine that SPICE asks Java for, and that Java dropped with version 15.

SPICE 1.0 formats its result file with two lines of JavaScript (parse, then print with indents). Without an engine it
dies with a NullPointerException after all the work is done. The class below takes the engine's place: it hands the
JSON text through as it is. SPICE finds it on its class path; it is the project's own code, compiled for Java 8 and up
(`javac --release 8 -g:none JsonPassThrough.java`), and a test compiles SOURCE again and compares.
"""

from __future__ import annotations

import base64
from pathlib import Path

CLASS_NAME = "JsonPassThrough"

SOURCE = """\
import java.io.Reader;
import java.util.Collections;
import java.util.List;
import javax.script.AbstractScriptEngine;
import javax.script.Bindings;
import javax.script.ScriptContext;
import javax.script.ScriptEngine;
import javax.script.ScriptEngineFactory;
import javax.script.SimpleBindings;

/** Stands in for the JavaScript engine that Java 15 removed: every script sets "result" to "jsonString". */
public final class JsonPassThrough extends AbstractScriptEngine implements ScriptEngineFactory {
    public Object eval(String script, ScriptContext context) {
        Object json = context.getAttribute("jsonString");
        context.setAttribute("result", json, ScriptContext.ENGINE_SCOPE);
        return json;
    }
    public Object eval(Reader script, ScriptContext context) { return eval("", context); }
    public Bindings createBindings() { return new SimpleBindings(); }
    public ScriptEngineFactory getFactory() { return this; }
    public String getEngineName() { return "json-pass-through"; }
    public String getEngineVersion() { return "1"; }
    public List<String> getExtensions() { return Collections.emptyList(); }
    public List<String> getMimeTypes() { return Collections.emptyList(); }
    public List<String> getNames() { return Collections.singletonList("JavaScript"); }
    public String getLanguageName() { return "JavaScript"; }
    public String getLanguageVersion() { return "0"; }
    public Object getParameter(String key) { return null; }
    public String getMethodCallSyntax(String object, String method, String... arguments) { return null; }
    public String getOutputStatement(String text) { return null; }
    public String getProgram(String... statements) { return null; }
    public ScriptEngine getScriptEngine() { return new JsonPassThrough(); }
}
"""

_CLASS_BASE64 = """
yv66vgAAADQATgoAAgADBwAEDAAFAAYBACFqYXZheC9zY3JpcHQvQWJzdHJhY3RTY3JpcHRFbmdpbmUBAAY8aW5pdD4BAAMoKVYIAAgBAApqc29uU3
RyaW5nCwAKAAsHAAwMAA0ADgEAGmphdmF4L3NjcmlwdC9TY3JpcHRDb250ZXh0AQAMZ2V0QXR0cmlidXRlAQAmKExqYXZhL2xhbmcvU3RyaW5nOylM
amF2YS9sYW5nL09iamVjdDsIABABAAZyZXN1bHQLAAoAEgwAEwAUAQAMc2V0QXR0cmlidXRlAQAoKExqYXZhL2xhbmcvU3RyaW5nO0xqYXZhL2xhbm
cvT2JqZWN0O0kpVggAFgEAAAoAGAAZBwAaDAAbABwBAA9Kc29uUGFzc1Rocm91Z2gBAARldmFsAQBCKExqYXZhL2xhbmcvU3RyaW5nO0xqYXZheC9z
Y3JpcHQvU2NyaXB0Q29udGV4dDspTGphdmEvbGFuZy9PYmplY3Q7BwAeAQAbamF2YXgvc2NyaXB0L1NpbXBsZUJpbmRpbmdzCgAdAAMIACEBABFqc2
9uLXBhc3MtdGhyb3VnaAgAIwEAATEKACUAJgcAJwwAKAApAQAVamF2YS91dGlsL0NvbGxlY3Rpb25zAQAJZW1wdHlMaXN0AQASKClMamF2YS91dGls
L0xpc3Q7CAArAQAKSmF2YVNjcmlwdAoAJQAtDAAuAC8BAA1zaW5nbGV0b25MaXN0AQAkKExqYXZhL2xhbmcvT2JqZWN0OylMamF2YS91dGlsL0xpc3
Q7CAAxAQABMAoAGAADBwA0AQAgamF2YXgvc2NyaXB0L1NjcmlwdEVuZ2luZUZhY3RvcnkBAARDb2RlAQBAKExqYXZhL2lvL1JlYWRlcjtMamF2YXgv
c2NyaXB0L1NjcmlwdENvbnRleHQ7KUxqYXZhL2xhbmcvT2JqZWN0OwEADmNyZWF0ZUJpbmRpbmdzAQAZKClMamF2YXgvc2NyaXB0L0JpbmRpbmdzOw
EACmdldEZhY3RvcnkBACQoKUxqYXZheC9zY3JpcHQvU2NyaXB0RW5naW5lRmFjdG9yeTsBAA1nZXRFbmdpbmVOYW1lAQAUKClMamF2YS9sYW5nL1N0
cmluZzsBABBnZXRFbmdpbmVWZXJzaW9uAQANZ2V0RXh0ZW5zaW9ucwEACVNpZ25hdHVyZQEAJigpTGphdmEvdXRpbC9MaXN0PExqYXZhL2xhbmcvU3
RyaW5nOz47AQAMZ2V0TWltZVR5cGVzAQAIZ2V0TmFtZXMBAA9nZXRMYW5ndWFnZU5hbWUBABJnZXRMYW5ndWFnZVZlcnNpb24BAAxnZXRQYXJhbWV0
ZXIBABNnZXRNZXRob2RDYWxsU3ludGF4AQBLKExqYXZhL2xhbmcvU3RyaW5nO0xqYXZhL2xhbmcvU3RyaW5nO1tMamF2YS9sYW5nL1N0cmluZzspTG
phdmEvbGFuZy9TdHJpbmc7AQASZ2V0T3V0cHV0U3RhdGVtZW50AQAmKExqYXZhL2xhbmcvU3RyaW5nOylMamF2YS9sYW5nL1N0cmluZzsBAApnZXRQ
cm9ncmFtAQAnKFtMamF2YS9sYW5nL1N0cmluZzspTGphdmEvbGFuZy9TdHJpbmc7AQAPZ2V0U2NyaXB0RW5naW5lAQAdKClMamF2YXgvc2NyaXB0L1
NjcmlwdEVuZ2luZTsAMQAYAAIAAQAzAAAAEQABAAUABgABADUAAAARAAEAAQAAAAUqtwABsQAAAAAAAQAbABwAAQA1AAAAIgAEAAQAAAAWLBIHuQAJ
AgBOLBIPLRBkuQARBAAtsAAAAAAAAQAbADYAAQA1AAAAFAADAAMAAAAIKhIVLLYAF7AAAAAAAAEANwA4AAEANQAAABQAAgABAAAACLsAHVm3AB+wAA
AAAAABADkAOgABADUAAAAOAAEAAQAAAAIqsAAAAAAAAQA7ADwAAQA1AAAADwABAAEAAAADEiCwAAAAAAABAD0APAABADUAAAAPAAEAAQAAAAMSIrAA
AAAAAAEAPgApAAIANQAAABAAAQABAAAABLgAJLAAAAAAAD8AAAACAEAAAQBBACkAAgA1AAAAEAABAAEAAAAEuAAksAAAAAAAPwAAAAIAQAABAEIAKQ
ACADUAAAASAAEAAQAAAAYSKrgALLAAAAAAAD8AAAACAEAAAQBDADwAAQA1AAAADwABAAEAAAADEiqwAAAAAAABAEQAPAABADUAAAAPAAEAAQAAAAMS
MLAAAAAAAAEARQAOAAEANQAAAA4AAQACAAAAAgGwAAAAAACBAEYARwABADUAAAAOAAEABAAAAAIBsAAAAAAAAQBIAEkAAQA1AAAADgABAAIAAAACAb
AAAAAAAIEASgBLAAEANQAAAA4AAQACAAAAAgGwAAAAAAABAEwATQABADUAAAAUAAIAAQAAAAi7ABhZtwAysAAAAAAAAA==
"""


def class_bytes() -> bytes:
    """The compiled class."""
    return base64.b64decode(_CLASS_BASE64)


def write_script_engine(folder: Path) -> Path:
    """Write the class and its registration.

    Args:
        folder: an existing folder.

    Returns:
        The same folder, to put on the class path.
    """
    (folder / f"{CLASS_NAME}.class").write_bytes(class_bytes())
    services = folder / "META-INF" / "services"
    services.mkdir(parents=True, exist_ok=True)
    (services / "javax.script.ScriptEngineFactory").write_text(f"{CLASS_NAME}\n", encoding="ascii")
    return folder
