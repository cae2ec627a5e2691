#!/usr/bin/env bash
# Builds the distribution twice and compares, checks its metadata, and tries the wheel outside the checkout without a
# network. `make release` runs it; SRPO_PROJECT_URL or project_url in pyproject.toml is the address of the repository.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=$PWD/.venv/bin
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

rm -rf dist build/again build/smoke
"$bin/python" -m build --no-isolation --outdir dist . >/dev/null
"$bin/python" -m build --no-isolation --outdir build/again . >/dev/null
(cd dist && sha256sum ./*) > build/first.sha256
(cd build/again && sha256sum --check --quiet ../first.sha256)
echo "reproducible: two builds have the same hashes"
cat build/first.sha256
"$bin/python" -m twine check --strict dist/*.whl dist/*.tar.gz

# The bill of materials: srpo's dependencies and theirs, in the versions of this environment.
"$bin/python" tools/requirements.py | "$bin/cyclonedx-py" requirements --output-reproducible --of JSON \
    -o dist/srpo.cdx.json -
echo "dist/srpo.cdx.json lists $(grep -c '"bom-ref"' dist/srpo.cdx.json) components"

mkdir -p build/smoke/work
"$bin/python" -m pip install -q --no-deps --no-index --target build/smoke/site dist/*.whl
cd build/smoke/work
export PYTHONPATH=$PWD/../site HF_HUB_OFFLINE=1 HF_HOME=$PWD/cache SRPO_TRACEBACK=1
srpo() { "$bin/python" -m srpo "$@"; }
srpo --version
srpo recipes >recipes.txt
srpo recipes copy tldr >/dev/null
srpo demo --prepare --prompts 4 --output_dir demo >/dev/null
srpo revise --model_name_or_path demo/seed0/base --input demo/seed0/prompts/in.jsonl --output trails.jsonl \
    --revisions 1 --max_new_tokens 7
[ "$(wc -l <trails.jsonl)" = 4 ]
"$bin/python" -c "import srpo, sys; assert 'smoke/site' in srpo.__file__.replace('\\\\', '/'), srpo.__file__"
echo "the wheel works outside the checkout"
cd ../../..
if ! "$bin/python" -c "import sys, zipfile, glob; sys.exit('Project-URL' not in zipfile.ZipFile(glob.glob('dist/*.whl')[0]).read(
    next(n for n in zipfile.ZipFile(glob.glob('dist/*.whl')[0]).namelist() if n.endswith('METADATA'))).decode())"; then
    echo "Not for upload: project_url in pyproject.toml is empty, so links of the README are relative."
fi
