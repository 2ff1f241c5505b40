#!/bin/sh
# Upload the server to Vertex AI and deploy it on an endpoint:
#   PROJECT=... REGION=europe-west4 HF_TOKEN=... deploy/vertex_upload.sh gemma-3-1b-it
# The server reads the port and the routes from the variables AIP_* that Vertex AI sets. It downloads the weights from the
# hub when it starts; HF_TOKEN is that of an account that has accepted their terms.
set -eu

source=${1:?"Usage: PROJECT=... REGION=... HF_TOKEN=... $0 MODEL"}
: "${PROJECT:?}" "${REGION:?}" "${HF_TOKEN:?}"
image=$REGION-docker.pkg.dev/$PROJECT/gemwright/gemwright:0.1.0

docker build --build-arg EXTRAS=serve -t "$image" .
docker push "$image"

model=$(gcloud ai models upload --project="$PROJECT" --region="$REGION" \
    --display-name=gemwright \
    --container-image-uri="$image" \
    --container-command=gemwright \
    --container-args="serve,--model=$source,--host=0.0.0.0" \
    --container-env-vars="HF_TOKEN=$HF_TOKEN" \
    --container-ports=8080 \
    --container-health-route=/readyz \
    --container-predict-route=/predict \
    --container-deployment-timeout-seconds=1800 \
    --format='value(model)')

endpoint=$(gcloud ai endpoints create --project="$PROJECT" --region="$REGION" \
    --display-name=gemwright --format='value(name)')
gcloud ai endpoints deploy-model "$endpoint" --project="$PROJECT" --region="$REGION" \
    --model="$model" --display-name=gemwright --machine-type=n2-standard-8 \
    --min-replica-count=1 --max-replica-count=4 --traffic-split=0=100

request=$(mktemp)
trap 'rm -f "$request"' EXIT
printf '{"instances": [{"prompt": "Once upon a time", "max_tokens": 20}]}' > "$request"
gcloud ai endpoints predict "$endpoint" --project="$PROJECT" --region="$REGION" --json-request="$request"
