# An MRD server for scanners (Siemens FIRE, OpenRecon) whose configuration `sgr` reconstructs bounds:
#   docker build -t sgr-mrd -f pipelines/mrd_server.Dockerfile .
#   docker run --rm -p 9002:9002 sgr-mrd
# The base image brings python-ismrmrd-server.
FROM kspacekelvin/fire-python

RUN python3 -c 'import sys; assert sys.version_info >= (3, 11), "sgr_diffusers needs Python 3.11 or newer"'
COPY . /opt/sgr_diffusers
RUN python3 -m pip install --no-cache-dir -c /opt/sgr_diffusers/constraints.txt /opt/sgr_diffusers
RUN echo "from sgr_diffusers.interop.mrd_server import process" > /opt/code/python-ismrmrd-server/sgr.py

CMD ["python3", "/opt/code/python-ismrmrd-server/main.py", "-v", "-H=0.0.0.0", "-p=9002", "-d=sgr"]
